#include "checkpoint/manifest.h"

#include <algorithm>
#include <fstream>
#include <iterator>
#include <map>
#include <optional>
#include <set>
#include <tuple>

#include "base/checked_math.h"
#include "base/error.h"
#include "base/shape.h"
#include "base/text.h"
#include "config/json_text.h"
#include "platform/files.h"

namespace deepscale {
namespace {

using config::Json;

constexpr char kFormat[] = "deepscale.checkpoint";
constexpr int kVersion = 2;  // 1: one size of blocks for all files, checksums in lists
constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64, DType::kInt8,
                             DType::kUInt8,   DType::kInt16,    DType::kInt32,   DType::kInt64,   DType::kBool};

/// Reads members with messages that say where they are missing or wrong.
class Reader {
 public:
  explicit Reader(std::string where) : where_(std::move(where)) {}

  const Json& member(const Json& object, const char* key) const {
    check(object.is_object() && object.contains(key), "has no \"{}\"", key);
    return object.at(key);
  }
  std::string text(const Json& object, const char* key) const {
    const Json& value = member(object, key);
    check(value.is_string(), "\"{}\" is no text", key);
    return value.get<std::string>();
  }
  const Json& list(const Json& object, const char* key) const {
    const Json& value = member(object, key);
    check(value.is_array(), "\"{}\" is no list", key);
    return value;
  }
  int64_t count(const Json& value, const char* what) const {
    const bool fits =
        value.is_number_integer() && (!value.is_number_unsigned() || value.get<uint64_t>() <= uint64_t{1} << 62);
    if (!fits || value.get<int64_t>() < 0) fail("{} is {}, which is no size", what, value.dump().substr(0, 40));
    return value.get<int64_t>();
  }
  template <typename... Args>
  void check(bool holds, fmt::format_string<Args...> format, Args&&... args) const {
    if (!holds) fail(format, std::forward<Args>(args)...);
  }
  /// For arguments that take time to make: a manifest has tens of thousands of numbers.
  template <typename... Args>
  [[noreturn]] void fail(fmt::format_string<Args...> format, Args&&... args) const {
    ds_throw<CheckpointError>("{}: {}", where_, fmt::format(format, std::forward<Args>(args)...));
  }
  [[nodiscard]] Reader at(const std::string& inner) const { return Reader(where_ + ", " + inner); }

 private:
  std::string where_;
};

/// A name that stays in its folder on every system.
bool is_plain_name(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find_first_of("/\\:") == std::string::npos &&
         name.find('\0') == std::string::npos && name != kManifestName;
}

/// 16 digits for each block one after the other; in older manifests a list of them.
std::vector<uint64_t> read_checksums(const Json& json, const Reader& reader) {
  std::vector<uint64_t> blocks;
  const auto add = [&](std::string_view text) {
    if (!parse_checksum(text, blocks.emplace_back())) reader.fail("{} is no checksum", printable(text));
  };
  if (json.is_string()) {
    const std::string_view text = json.get_ref<const std::string&>();
    blocks.reserve(text.size() / 16);
    for (size_t at = 0; at < text.size(); at += 16) add(text.substr(at, 16));
    return blocks;
  }
  reader.check(json.is_array(), "\"xxh3\" is neither text nor a list");
  for (const Json& item : json) {
    if (!item.is_string()) reader.fail("{} is no checksum", item.dump().substr(0, 40));
    add(item.get_ref<const std::string&>());
  }
  return blocks;
}

/// manifest: where older ones name the size of blocks once for all files.
ManifestFile read_file_entry(const Json& json, const Json& manifest, const Reader& reader) {
  ManifestFile file;
  file.name = reader.text(json, "name");
  reader.check(is_plain_name(file.name), "\"{}\" is not the name of a file in this folder", printable(file.name));
  const Reader inner = reader.at("file " + printable(file.name));
  file.checksums.bytes = inner.count(inner.member(json, "bytes"), "\"bytes\"");
  const Json& block = json.contains("block_bytes") ? json.at("block_bytes") : inner.member(manifest, "block_bytes");
  file.checksums.block_bytes = inner.count(block, "\"block_bytes\"");
  inner.check(is_block_size(file.checksums.block_bytes),
              "has checksums of blocks of {} bytes, expected a power of two from 4096 to {}",
              file.checksums.block_bytes, kChunkBytes);
  file.checksums.blocks = read_checksums(inner.member(json, "xxh3"), inner);
  inner.check(static_cast<int64_t>(file.checksums.blocks.size()) == file.checksums.count(),
              "{} bytes have {} checksums, expected {}", file.checksums.bytes, file.checksums.blocks.size(),
              file.checksums.count());
  return file;
}

void check_slices(const ManifestTensor& tensor, const std::vector<ManifestFile>& files, bool is_part,
                  const Reader& reader) {
  int64_t position = 0;
  for (const ManifestSlice& slice : tensor.slices) {
    reader.check(slice.file >= 0 && slice.file < static_cast<int>(files.size()), "there is no file {}", slice.file);
    reader.check(slice.offset >= position, "elements {} to {} stand in two places", slice.offset, position);
    reader.check(is_part || slice.offset == position, "elements {} to {} are missing", position, slice.offset);
    const auto end = checked_sum(slice.offset, slice.numel);
    const auto bytes = checked_product(slice.numel, size_of(tensor.dtype));
    const auto last = bytes ? checked_sum(slice.begin, *bytes) : std::nullopt;
    const ManifestFile& file = files[slice.file];
    if (!end || !last || *last > file.checksums.bytes) {
      reader.fail("{} elements at byte {} are not inside {} with its {} bytes", slice.numel, slice.begin,
                  printable(file.name), file.checksums.bytes);
    }
    position = *end;
  }
  reader.check(is_part ? position <= tensor.numel() : position == tensor.numel(), "{} elements are stored of {}",
               position, tensor.numel());
}

ManifestTensor read_tensor(const Json& json, const Reader& outer) {
  ManifestTensor tensor;
  tensor.name = outer.text(json, "name");
  const Reader reader = outer.at("tensor " + printable(tensor.name));
  const std::string dtype = reader.text(json, "dtype");
  const auto* known =
      std::find_if(std::begin(kDTypes), std::end(kDTypes), [&](DType d) { return name_of(d) == dtype; });
  reader.check(known != std::end(kDTypes), "dtype \"{}\" is not known", printable(dtype));
  tensor.dtype = *known;
  int64_t numel = 1;
  for (const Json& item : reader.list(json, "shape")) {
    tensor.shape.push_back(reader.count(item, "a size in \"shape\""));
    const auto product = checked_product(numel, tensor.shape.back());
    reader.check(product.has_value(), "impossible shape");
    numel = *product;
  }
  for (const Json& item : reader.list(json, "slices")) {
    reader.check(item.is_array() && item.size() == 4, "a slice is not a list of four numbers");
    const int64_t file = reader.count(item[0], "a slice's file");
    reader.check(file <= 1 << 30, "there is no file {}", file);
    tensor.slices.push_back({static_cast<int>(file), reader.count(item[1], "a slice's byte"),
                             reader.count(item[2], "a slice's offset"), reader.count(item[3], "a slice's length")});
  }
  return tensor;
}

Json parse_text(std::string_view text, const Reader& reader) {
  try {
    return config::parse_json_text(text);
  } catch (const ConfigError& error) {
    reader.check(false, "is damaged: {}", error.what());
    throw;
  }
}

/// The checksum is of the text without its last member, which holds it. A manifest that was written anew by another
/// program may stand differently: what counts is that text as this program writes it.
bool is_intact(std::string_view text, const Json& without_checksum, const std::string& checksum) {
  const std::string end = fmt::format(",\"checksum\":\"{}\"}}", checksum);
  if (text.ends_with(end)) {
    std::string rest(text.substr(0, text.size() - end.size()));
    if (checksum_text(checksum_of(rest += "}")) == checksum) return true;
  }
  return checksum_text(checksum_of(without_checksum.dump())) == checksum;
}

Json to_json(const Manifest& manifest) {
  Json files = Json::array(), tensors = Json::array();
  for (const ManifestFile& file : manifest.files) {
    std::string sums;
    sums.reserve(file.checksums.blocks.size() * 16);
    for (const uint64_t block : file.checksums.blocks) sums += checksum_text(block);
    files.push_back({{"name", file.name},
                     {"bytes", file.checksums.bytes},
                     {"block_bytes", file.checksums.block_bytes},
                     {"xxh3", std::move(sums)}});
  }
  for (const ManifestTensor& tensor : manifest.tensors) {
    Json slices = Json::array();
    for (const ManifestSlice& s : tensor.slices) slices.push_back(Json::array({s.file, s.begin, s.offset, s.numel}));
    tensors.push_back({{"name", tensor.name},
                       {"dtype", std::string(name_of(tensor.dtype))},
                       {"shape", tensor.shape},
                       {"slices", std::move(slices)}});
  }
  Json json;
  json["format"] = kFormat;
  json["version"] = kVersion;
  json["layout"] = manifest.layout;
  json["tag"] = manifest.tag;
  json["files"] = std::move(files);
  json["tensors"] = std::move(tensors);
  json["info"] = config::parse_json_text(manifest.info);
  return json;
}

/// No byte of a file belongs to two slices: a small file cannot pose as terabytes of tensors.
void check_bytes_once(const Manifest& manifest, const Reader& reader) {
  struct Stretch {
    int file;
    int64_t begin, end;
    const ManifestTensor* tensor;
  };
  std::vector<Stretch> stretches;
  for (const ManifestTensor& tensor : manifest.tensors) {
    for (const ManifestSlice& slice : tensor.slices) {
      const int64_t bytes = slice.numel * size_of(tensor.dtype);
      if (bytes > 0) stretches.push_back({slice.file, slice.begin, slice.begin + bytes, &tensor});
    }
  }
  std::sort(stretches.begin(), stretches.end(),
            [](const Stretch& a, const Stretch& b) { return std::tie(a.file, a.begin) < std::tie(b.file, b.begin); });
  for (size_t i = 1; i < stretches.size(); ++i) {
    const Stretch &before = stretches[i - 1], &here = stretches[i];
    if (here.file == before.file && here.begin < before.end) {
      reader.fail("tensors {} and {} have the same bytes of file {}", printable(before.tensor->name),
                  printable(here.tensor->name), printable(manifest.files[here.file].name));
    }
  }
}

void check_manifest(const Manifest& manifest, bool is_part, const Reader& reader) {
  std::set<std::string_view> names;
  for (const ManifestFile& file : manifest.files) {
    if (!names.insert(file.name).second) reader.fail("the file {} is listed twice", printable(file.name));
  }
  names.clear();
  for (const ManifestTensor& tensor : manifest.tensors) {
    if (!names.insert(tensor.name).second) reader.fail("the tensor {} is listed twice", printable(tensor.name));
    check_slices(tensor, manifest.files, is_part, reader.at("tensor " + printable(tensor.name)));
  }
  check_bytes_once(manifest, reader);
}

}  // namespace

int64_t ManifestTensor::numel() const {
  return numel_of(shape);
}

int64_t Manifest::bytes() const {
  int64_t sum = 0;
  for (const ManifestFile& file : files) sum += file.checksums.bytes;
  return sum;
}

Manifest parse_manifest(std::string_view text, const std::string& file, bool is_part) {
  const Reader reader("checkpoint manifest " + file);
  Json json = parse_text(text, reader);
  reader.check(json.is_object() && json.value("format", Json()) == kFormat, "is not of the format {}", kFormat);
  const Json& version = reader.member(json, "version");
  reader.check(version == 1 || version == kVersion, "has version {}, this program reads versions 1 and {}",
               version.dump().substr(0, 40), kVersion);
  const std::string checksum = reader.text(json, "checksum");
  json.erase("checksum");
  reader.check(is_intact(text, json, checksum), "is damaged: its checksum is another one");
  Manifest manifest;
  manifest.layout = reader.text(json, "layout");
  manifest.tag = reader.text(json, "tag");
  for (const Json& item : reader.list(json, "files")) manifest.files.push_back(read_file_entry(item, json, reader));
  for (const Json& item : reader.list(json, "tensors")) manifest.tensors.push_back(read_tensor(item, reader));
  const Json& info = reader.member(json, "info");
  reader.check(info.is_object(), "\"info\" is no object");
  manifest.info = info.dump();
  check_manifest(manifest, is_part, reader);
  return manifest;
}

Manifest read_manifest(const std::string& folder) {
  const std::string path = folder + "/" + kManifestName;
  std::ifstream in(native_path(path).c_str(), std::ios::binary);
  DS_CHECK_AS(CheckpointError, in.good(), "{} is no finished checkpoint: it has no {}", folder, kManifestName);
  std::string text(static_cast<size_t>(file_size(path).value_or(0)), '\0');
  in.read(text.data(), static_cast<std::streamsize>(text.size()));
  DS_CHECK_AS(CheckpointError, in.gcount() == static_cast<std::streamsize>(text.size()), "cannot read {}", path);
  return parse_manifest(text, path);
}

std::string manifest_layout(const std::string& folder) {
  std::ifstream in(native_path(folder + "/" + kManifestName).c_str(), std::ios::binary);
  std::string head(256, '\0');
  in.read(head.data(), static_cast<std::streamsize>(head.size()));
  for (const char* const layout : {"native", "deepspeed"}) {
    const Json begin = {{"format", kFormat}, {"version", kVersion}, {"layout", layout}};
    std::string text = begin.dump();
    text.back() = ',';
    if (head.starts_with(text)) return layout;
  }
  return read_manifest(folder).layout;
}

std::string manifest_text(const Manifest& manifest) {
  Json json = to_json(manifest);
  json["checksum"] = checksum_text(checksum_of(json.dump()));
  return json.dump();
}

Manifest join_manifests(const std::vector<Manifest>& parts) {
  Manifest whole;
  std::map<std::string, size_t> places;
  for (const Manifest& part : parts) {
    if (&part == &parts.front()) {
      whole.layout = part.layout;
      whole.tag = part.tag;
      whole.info = part.info;
    }
    const int first_file = static_cast<int>(whole.files.size());
    whole.files.insert(whole.files.end(), part.files.begin(), part.files.end());
    for (const ManifestTensor& tensor : part.tensors) {
      const auto [place, is_new] = places.emplace(tensor.name, whole.tensors.size());
      if (is_new) whole.tensors.push_back({tensor.name, tensor.dtype, tensor.shape, {}});
      ManifestTensor& joined = whole.tensors[place->second];
      DS_CHECK_AS(CheckpointError, joined.dtype == tensor.dtype && joined.shape == tensor.shape,
                  "checkpoint {}: ranks have tensor {} in different dtypes or shapes", whole.tag, tensor.name);
      for (ManifestSlice slice : tensor.slices) {
        slice.file += first_file;
        if (slice.numel > 0) joined.slices.push_back(slice);
      }
    }
  }
  for (ManifestTensor& tensor : whole.tensors) {
    std::sort(tensor.slices.begin(), tensor.slices.end(),
              [](const ManifestSlice& a, const ManifestSlice& b) { return a.offset < b.offset; });
  }
  check_manifest(whole, false, Reader("checkpoint " + whole.tag));
  return whole;
}

}  // namespace deepscale
