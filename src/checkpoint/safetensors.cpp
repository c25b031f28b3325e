#include "checkpoint/safetensors.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <optional>

#include "base/checked_math.h"
#include "base/error.h"
#include "checkpoint/file_replace.h"
#include "config/json_text.h"
#include "platform/files.h"

namespace deepscale {
namespace {

using config::Json;

static_assert(std::endian::native == std::endian::little, "the format is little endian, and so is every target");

constexpr int64_t kPrefixBytes = 8;
constexpr int64_t kLargestHeader = 100'000'000;  // the format's own limit

struct DTypeName {
  std::string_view name;
  DType dtype;
};
constexpr std::array<DTypeName, 10> kDTypeNames = {{{"F64", DType::kFloat64},
                                                    {"F32", DType::kFloat32},
                                                    {"F16", DType::kFloat16},
                                                    {"BF16", DType::kBFloat16},
                                                    {"I64", DType::kInt64},
                                                    {"I32", DType::kInt32},
                                                    {"I16", DType::kInt16},
                                                    {"I8", DType::kInt8},
                                                    {"U8", DType::kUInt8},
                                                    {"BOOL", DType::kBool}}};

std::string_view format_name(DType dtype) {
  return std::find_if(kDTypeNames.begin(), kDTypeNames.end(), [&](const DTypeName& n) { return n.dtype == dtype; })
      ->name;
}

/// A whole number from 0 to `limit`.
std::optional<int64_t> bounded(const Json& value, int64_t limit) {
  if (!value.is_number_integer()) return std::nullopt;
  if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(limit)) return std::nullopt;
  const auto number = value.get<int64_t>();
  return number >= 0 && number <= limit ? std::optional<int64_t>(number) : std::nullopt;
}

std::vector<int64_t> read_shape(const Json& json, int64_t& numel, const std::string& where) {
  std::vector<int64_t> shape;
  DS_CHECK_AS(CheckpointError, json.is_array(), "{}: \"shape\" is not a list", where);
  numel = 1;
  for (const Json& item : json) {
    const auto size = bounded(item, int64_t{1} << 62);
    const auto product = size ? checked_product(numel, *size) : std::nullopt;
    DS_CHECK_AS(CheckpointError, product.has_value(), "{}: impossible shape {}", where, json.dump());
    numel = *product;
    shape.push_back(*size);
  }
  return shape;
}

SafetensorsEntry read_entry(const std::string& name, const Json& json, int64_t data_bytes, const std::string& file) {
  const std::string where = fmt::format("safetensors file {}, tensor {}", file, name);
  DS_CHECK_AS(CheckpointError,
              json.is_object() && json.contains("dtype") && json.contains("shape") && json.contains("data_offsets") &&
                  json["dtype"].is_string(),
              "{}: needs dtype, shape and data_offsets", where);
  SafetensorsEntry entry;
  entry.name = name;
  const std::string dtype = json["dtype"].get<std::string>();
  const auto* known =
      std::find_if(kDTypeNames.begin(), kDTypeNames.end(), [&](const DTypeName& n) { return n.name == dtype; });
  DS_CHECK_AS(CheckpointError, known != kDTypeNames.end(), "{}: dtype \"{}\" is not supported", where, dtype);
  entry.dtype = known->dtype;
  int64_t numel = 0;
  entry.shape = read_shape(json["shape"], numel, where);
  const auto bytes = checked_product(numel, size_of(entry.dtype));
  DS_CHECK_AS(CheckpointError, bytes.has_value(), "{}: impossible shape", where);
  const Json& offsets = json["data_offsets"];
  DS_CHECK_AS(CheckpointError, offsets.is_array() && offsets.size() == 2, "{}: data_offsets is not a pair", where);
  const auto begin = bounded(offsets[0], data_bytes);
  const auto end = bounded(offsets[1], data_bytes);
  DS_CHECK_AS(CheckpointError, begin && end && *begin <= *end,
              "{}: bytes {} are not inside the file, which holds {} bytes of data (is it cut off?)", where,
              offsets.dump(), data_bytes);
  DS_CHECK_AS(CheckpointError, *end - *begin == *bytes, "{}: has {} bytes where its shape and dtype need {}", where,
              *end - *begin, *bytes);
  entry.begin = *begin;
  entry.end = *end;
  return entry;
}

Json parse_header_text(std::string_view text, const std::string& file) {
  try {
    Json json = config::parse_json_text(text);
    DS_CHECK_AS(CheckpointError, json.is_object(), "safetensors file {}: the header is no object", file);
    return json;
  } catch (const ConfigError& error) {
    ds_throw<CheckpointError>("safetensors file {}: the header is damaged: {}", file, error.what());
  }
}

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view text, int64_t data_bytes, const std::string& file) {
  const Json json = parse_header_text(text, file);
  SafetensorsHeader header;
  for (const auto& [name, value] : json.items()) {
    if (name == "__metadata__") {
      DS_CHECK_AS(CheckpointError, value.is_object(), "safetensors file {}: __metadata__ is no object", file);
      for (const auto& [key, item] : value.items()) {
        DS_CHECK_AS(CheckpointError, item.is_string(), "safetensors file {}: __metadata__.{} is no text", file, key);
        header.metadata[key] = item.get<std::string>();
      }
    } else {
      header.entries.push_back(read_entry(name, value, data_bytes, file));
    }
  }
  std::stable_sort(header.entries.begin(), header.entries.end(),
                   [](const auto& a, const auto& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  int64_t position = 0;
  for (const auto& entry : header.entries) {
    DS_CHECK_AS(
        CheckpointError, entry.begin == position,
        "safetensors file {}: the bytes of tensor {} begin at {} instead of {}: tensors overlap or leave a hole", file,
        entry.name, entry.begin, position);
    position = entry.end;
  }
  DS_CHECK_AS(CheckpointError, position == data_bytes,
              "safetensors file {}: {} bytes of data, but its tensors have {} (is it cut off?)", file, data_bytes,
              position);
  return header;
}

SafetensorsFile SafetensorsFile::open(const std::string& path) {
  const auto bytes = file_size(path);
  DS_CHECK_AS(CheckpointError, bytes.has_value(), "there is no safetensors file {}", path);
  const int64_t size = *bytes;
  SafetensorsFile file(path, std::ifstream(native_path(path).c_str(), std::ios::binary));
  DS_CHECK_AS(CheckpointError, file.stream_.good(), "cannot open safetensors file {}: {}", path, std::strerror(errno));
  uint64_t length = 0;
  file.stream_.read(reinterpret_cast<char*>(&length), kPrefixBytes);
  DS_CHECK_AS(CheckpointError,
              file.stream_.good() && length <= kLargestHeader && static_cast<int64_t>(length) <= size - kPrefixBytes,
              "safetensors file {} is cut off or not a safetensors file: its {} bytes cannot hold the header", path,
              size);
  std::string text(length, '\0');
  file.stream_.read(text.data(), static_cast<std::streamsize>(length));
  DS_CHECK_AS(CheckpointError, file.stream_.good(), "cannot read the header of safetensors file {}", path);
  file.data_begin_ = kPrefixBytes + static_cast<int64_t>(length);
  file.header_ = parse_safetensors_header(text, size - file.data_begin_, path);
  return file;
}

const SafetensorsEntry* SafetensorsFile::find(std::string_view name) const {
  const auto found = std::find_if(header_.entries.begin(), header_.entries.end(),
                                  [&](const SafetensorsEntry& entry) { return entry.name == name; });
  return found == header_.entries.end() ? nullptr : &*found;
}

void SafetensorsFile::read(const SafetensorsEntry& entry, void* destination) {
  read(entry, 0, entry.end - entry.begin, destination);
}

void SafetensorsFile::read(const SafetensorsEntry& entry, int64_t offset, int64_t bytes, void* destination) {
  DS_CHECK(offset >= 0 && bytes >= 0 && offset + bytes <= entry.end - entry.begin,
           "tensor {} of {}: bytes {} to {} of {} were asked for", entry.name, path_, offset, offset + bytes,
           entry.end - entry.begin);
  stream_.clear();
  stream_.seekg(data_begin_ + entry.begin + offset);
  stream_.read(static_cast<char*>(destination), bytes);
  DS_CHECK_AS(CheckpointError, stream_.good(), "cannot read tensor {} of safetensors file {}: the file became shorter",
              entry.name, path_);
}

namespace {

int64_t bytes_of(const SafetensorsItem& item) {
  int64_t bytes = size_of(item.dtype);
  for (const int64_t size : item.shape) bytes *= size;
  return bytes;
}

}  // namespace

std::string safetensors_header_text(const std::vector<SafetensorsItem>& items,
                                    const std::map<std::string, std::string>& metadata) {
  Json json = Json::object();
  for (const auto& [key, text] : metadata) json["__metadata__"][key] = text;
  int64_t position = 0;
  for (const auto& item : items) {
    const int64_t bytes = bytes_of(item);
    json[item.name] = {
        {"dtype", format_name(item.dtype)}, {"shape", item.shape}, {"data_offsets", {position, position + bytes}}};
    position += bytes;
  }
  std::string text = json.dump();
  text.resize((text.size() + 7) / 8 * 8, ' ');
  const auto length = static_cast<uint64_t>(text.size());
  return std::string(reinterpret_cast<const char*>(&length), kPrefixBytes) + text;
}

void write_safetensors(const std::string& path, const std::vector<SafetensorsItem>& items,
                       const std::map<std::string, std::string>& metadata) {
  const std::string header = safetensors_header_text(items, metadata);
  replace_file(path, [&](std::ostream& out) {
    out.write(header.data(), static_cast<std::streamsize>(header.size()));
    for (const auto& item : items) out.write(static_cast<const char*>(item.data), bytes_of(item));
  });
}

}  // namespace deepscale
