#include "checkpoint/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <nlohmann/json.hpp>
#include <numeric>

#include "base/error.h"
#include "base/shape.h"
#include "checkpoint/file_replace.h"
#include "platform/files.h"

namespace deepscale {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little endian, and so is every target");

constexpr int64_t kPrefixBytes = 8;
constexpr int64_t kLargestHeader = 100'000'000;  // the format's own limit

}  // namespace

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
  const std::vector<SafetensorsEntry>& entries = file.header_.entries;
  file.by_name_.resize(entries.size());
  std::iota(file.by_name_.begin(), file.by_name_.end(), size_t{0});
  std::sort(file.by_name_.begin(), file.by_name_.end(),
            [&](size_t a, size_t b) { return entries[a].name < entries[b].name; });
  return file;
}

const SafetensorsEntry* SafetensorsFile::find(std::string_view name) const {
  const auto found =
      std::lower_bound(by_name_.begin(), by_name_.end(), name,
                       [this](size_t index, std::string_view key) { return header_.entries[index].name < key; });
  if (found == by_name_.end() || header_.entries[*found].name != name) return nullptr;
  return &header_.entries[*found];
}

void SafetensorsFile::read(const SafetensorsEntry& entry, void* destination) {
  read(entry, 0, entry.end - entry.begin, destination);
}

void SafetensorsFile::read(const SafetensorsEntry& entry, int64_t offset, int64_t bytes, void* destination) {
  DS_CHECK(offset >= 0 && bytes >= 0 && bytes <= entry.end - entry.begin && offset <= entry.end - entry.begin - bytes,
           "tensor {} of {}: bytes {} to {} of {} were asked for", entry.name, path_, offset, offset + bytes,
           entry.end - entry.begin);
  stream_.clear();
  stream_.seekg(data_begin_ + entry.begin + offset);
  stream_.read(static_cast<char*>(destination), bytes);
  DS_CHECK_AS(CheckpointError, stream_.good(), "cannot read tensor {} of safetensors file {}: the file became shorter",
              entry.name, path_);
}

int64_t SafetensorsItem::bytes() const {
  return numel_of(shape) * size_of(dtype);
}

std::string safetensors_header_text(const std::vector<SafetensorsItem>& items,
                                    const std::map<std::string, std::string>& metadata) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (const auto& [key, text] : metadata) json["__metadata__"][key] = text;
  int64_t position = 0;
  for (const auto& item : items) {
    const int64_t bytes = item.bytes();
    json[item.name] = {
        {"dtype", safetensors_name(item.dtype)}, {"shape", item.shape}, {"data_offsets", {position, position + bytes}}};
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
    for (const auto& item : items) out.write(static_cast<const char*>(item.data), item.bytes());
  });
}

}  // namespace deepscale
