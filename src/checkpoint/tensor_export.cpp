#include "checkpoint/tensor_export.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "checkpoint/elements.h"
#include "checkpoint/file_replace.h"
#include "checkpoint/safetensors.h"
#include "checkpoint/shard_writer.h"
#include "checkpoint/tag_folder.h"
#include "checkpoint/tensor_windows.h"
#include "checkpoint/verified_file.h"
#include "config/json_text.h"
#include "memory/memory_plan.h"
#include "platform/disk_space.h"
#include "platform/files.h"

namespace deepscale {
namespace {

constexpr char kIndexName[] = "model.safetensors.index.json";

DType stored_dtype(DType dtype, std::optional<DType> float_dtype) {
  return float_dtype && is_float(dtype) ? *float_dtype : dtype;
}

/// The bytes of ranges one after the other, converted.
class ConvertedBytes {
 public:
  ConvertedBytes(TensorSource& source, const std::vector<SourceRange>& ranges, std::optional<DType> float_dtype)
      : source_(source), float_dtype_(float_dtype), windows_(source, ranges) {}

  void copy(int64_t bytes, char* destination) {
    while (bytes > 0) {
      if (left_ == 0) take_piece();
      const int64_t part = std::min(bytes, left_);
      std::memcpy(destination, data_, static_cast<size_t>(part));
      data_ += part;
      left_ -= part;
      destination += part;
      bytes -= part;
    }
  }

 private:
  void take_piece() {
    if (pieces_ == nullptr || next_ == pieces_->size()) {
      pieces_ = &windows_.next();
      next_ = 0;
    }
    const TensorPiece& piece = pieces_->at(next_++);
    const DType from = source_.tensors()[piece.tensor].dtype, to = stored_dtype(from, float_dtype_);
    left_ = piece.numel * size_of(to);
    data_ = piece.data;
    if (from == to) return;
    if (static_cast<int64_t>(converted_.size()) < left_) converted_.resize(static_cast<size_t>(left_));
    kernels::convert(piece.data, from, converted_.data(), to, piece.numel);
    data_ = converted_.data();
  }

  TensorSource& source_;
  std::optional<DType> float_dtype_;
  TensorWindows windows_;
  const std::vector<TensorPiece>* pieces_ = nullptr;
  size_t next_ = 0;
  const char* data_ = nullptr;
  int64_t left_ = 0;
  std::vector<char> converted_;
};

void check_written(const std::string& path, const FileChecksums& checksums) {
  const size_t slash = path.rfind('/');
  const ManifestFile file{path.substr(slash + 1), checksums};
  const auto damaged = damaged_blocks(path.substr(0, slash), file, 0, checksums.count());
  DS_CHECK_AS(CheckpointError, damaged.empty(), "{} was written, but the disk returns other bytes from byte {} on",
              path, damaged.empty() ? 0 : damaged.front() * checksums.block_bytes);
}

void check_room(const std::string& folder, int64_t bytes) {
  const auto space = disk_space(folder);
  DS_CHECK_AS(IoError, !space || space->available_bytes >= bytes, "{} are needed in {}, its disk has {} left",
              readable_bytes(bytes), folder, readable_bytes(space ? space->available_bytes : 0));
}

/// A folder that is gone with this object.
class WorkFolder {
 public:
  explicit WorkFolder(std::string path) : path_(std::move(path)) {
    remove_directories(path_);
    make_directories(path_);
  }
  WorkFolder(const WorkFolder&) = delete;
  WorkFolder& operator=(const WorkFolder&) = delete;
  ~WorkFolder() {
    try {
      remove_directories(path_);
    } catch (const Error&) {
      // It has a dot in front: nobody takes it for weights.
    }
  }
  [[nodiscard]] const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// ---------------------------------------------------------------- weights
struct Part {
  std::vector<int> tensors;
  int64_t bytes = 0;
};

/// Parts of at most `limit` bytes in the order of the tensors. One that is larger is a part of its own, and the part
/// that was begun goes on after it.
std::vector<Part> split(const TensorSource& source, DType dtype, int64_t limit) {
  std::vector<Part> parts;
  Part current;
  for (int t = 0; t < static_cast<int>(source.tensors().size()); ++t) {
    const SourceTensor& tensor = source.tensors()[t];
    if (tensor.weight.empty()) continue;
    const int64_t bytes = tensor.numel() * size_of(stored_dtype(tensor.dtype, dtype));
    if (bytes > limit) {
      parts.push_back({{t}, bytes});
      continue;
    }
    if (current.bytes + bytes > limit) {
      parts.push_back(std::move(current));
      current = {};
    }
    current.tensors.push_back(t);
    current.bytes += bytes;
  }
  if (!current.tensors.empty() || parts.empty()) parts.push_back(std::move(current));
  return parts;
}

bool is_weight_file(const std::string& name) {
  return name == kIndexName || (name.starts_with("model") && name.ends_with(".safetensors"));
}

void write_part(TensorSource& source, const Part& part, const std::string& path, const WeightOptions& options) {
  std::map<std::string, std::string> metadata = {{"format", "pt"}};
  std::vector<SourceRange> ranges;
  for (const int t : part.tensors) {
    const SourceTensor& tensor = source.tensors()[t];
    ranges.push_back({t, 0, tensor.numel(), nullptr});
    for (const auto& [alias, name] : source.aliases()) {
      if (name == tensor.weight) metadata[alias] = name;
    }
  }
  (void)write_tensors(source, ranges, path, options.dtype, metadata, options.written);
}

/// New files under their names; a set of them counts from the moment when its index is there.
void publish(const std::string& work, const std::string& folder, const std::vector<std::string>& names) {
  remove_file(folder + "/" + kIndexName);
  for (const std::string& name : list_directory(folder)) {
    if (!is_weight_file(name)) continue;
    DS_CHECK_AS(IoError, remove_file(folder + "/" + name) || !file_size(folder + "/" + name),
                "{}/{} cannot be replaced: does another program have it open? Close it, or choose another folder",
                folder, name);
  }
  sync_directory(folder);
  for (const std::string& name : names) rename_file(work + "/" + name, folder + "/" + name);  // the index is last
  sync_directory(folder);
}

// ---------------------------------------------------------------- slices for other ranks
/// Elements [begin, end) of each tensor for one of several ranks; boundaries at multiples of 64 elements. Tensors that
/// have not as many blocks as there are ranks stay whole, on one rank after the other.
std::vector<SourceRange> ranges_of_rank(const TensorSource& source, int rank, int ranks) {
  constexpr int64_t kAlignment = 64;
  std::vector<SourceRange> ranges;
  for (int t = 0; t < static_cast<int>(source.tensors().size()); ++t) {
    const int64_t numel = source.tensors()[t].numel(), blocks = (numel + kAlignment - 1) / kAlignment;
    if (blocks < ranks) {
      if (t % ranks == rank) ranges.push_back({t, 0, numel, nullptr});
      continue;
    }
    // blocks * r / ranks without a product that could be too large
    const auto boundary = [&](int64_t r) {
      return std::min(numel, (blocks / ranks * r + blocks % ranks * r / ranks) * kAlignment);
    };
    ranges.push_back({t, boundary(rank), boundary(rank + 1) - boundary(rank), nullptr});
  }
  return ranges;
}

/// A file that holds no tensors.
ManifestFile copy_verified(const std::string& from, const ManifestFile& file, const std::string& to) {
  FileChecksums written =
      write_stream(to + "/" + file.name, file.checksums.bytes, [&](int64_t offset, int64_t bytes, char* data) {
        read_verified(from, {{&file, {{offset, bytes, data}}}});
      });
  check_written(to + "/" + file.name, written);
  return {file.name, std::move(written)};
}

Manifest write_rank(TensorSource& source, const std::string& work, int rank, const ReshardOptions& options) {
  Manifest part;
  part.tag = options.tag;
  const auto ranges = ranges_of_rank(source, rank, options.ranks);
  if (ranges.empty()) return part;
  const std::string name = fmt::format("rank_{:05d}.safetensors", rank);
  WrittenTensors written = write_tensors(source, ranges, work + "/" + name, std::nullopt,
                                         {{"format", "pt"}, {"written_by", "deepscale"}}, options.written);
  part.files.push_back({name, std::move(written.checksums)});
  for (size_t i = 0; i < ranges.size(); ++i) {
    const SourceTensor& tensor = source.tensors()[ranges[i].tensor];
    part.tensors.push_back(
        {tensor.name, tensor.dtype, tensor.shape, {{0, written.begins[i], ranges[i].offset, ranges[i].numel}}});
  }
  return part;
}

std::string resharded_info(const std::string& info, int ranks) {
  config::Json json = config::parse_json_text(info);
  json["slices_for"] = ranks;
  return json.dump();
}

}  // namespace

WrittenTensors write_tensors(TensorSource& source, const std::vector<SourceRange>& ranges, const std::string& path,
                             std::optional<DType> float_dtype, const std::map<std::string, std::string>& metadata,
                             const std::function<void(int64_t bytes)>& written) {
  std::vector<SafetensorsItem> items;
  for (const SourceRange& range : ranges) {
    const SourceTensor& tensor = source.tensors()[range.tensor];
    const bool whole = range.offset == 0 && range.numel == tensor.numel();
    items.push_back({source.kind() == CheckpointKind::kNative && !float_dtype ? tensor.name : tensor.weight,
                     stored_dtype(tensor.dtype, float_dtype), whole ? tensor.shape : std::vector<int64_t>{range.numel},
                     nullptr});
  }
  const std::string header = safetensors_header_text(items, metadata);
  WrittenTensors result;
  auto total = static_cast<int64_t>(header.size());
  for (const SafetensorsItem& item : items) {
    result.begins.push_back(total);
    total += item.bytes();
  }
  ConvertedBytes bytes_of_tensors(source, ranges, float_dtype);
  result.checksums = write_stream(path, total, [&](int64_t offset, int64_t bytes, char* destination) {
    const auto in_header = std::max<int64_t>(std::min(static_cast<int64_t>(header.size()) - offset, bytes), 0);
    if (in_header > 0) header.copy(destination, static_cast<size_t>(in_header), static_cast<size_t>(offset));
    bytes_of_tensors.copy(bytes - in_header, destination + in_header);
    if (written) written(bytes - in_header);
  });
  check_written(path, result.checksums);
  return result;
}

int64_t weight_bytes(const TensorSource& source, DType dtype) {
  int64_t bytes = 0;
  for (const SourceTensor& tensor : source.tensors()) {
    if (!tensor.weight.empty()) bytes += tensor.numel() * size_of(stored_dtype(tensor.dtype, dtype));
  }
  return bytes;
}

WeightFiles write_weights(TensorSource& source, const std::string& folder, const WeightOptions& options) {
  const std::vector<std::string> there = list_directory(folder);
  const auto old = std::find_if(there.begin(), there.end(), is_weight_file);
  DS_CHECK_AS(ConfigError, options.overwrite || old == there.end(),
              "{} already has {}: choose another folder, or replace its weights with --overwrite", folder,
              old == there.end() ? "" : *old);
  const std::vector<Part> parts = split(source, options.dtype, options.shard_bytes);
  WeightFiles files;
  for (const Part& part : parts) {
    files.tensors += static_cast<int64_t>(part.tensors.size());
    files.bytes += part.bytes;
  }
  DS_CHECK_AS(CheckpointError, files.tensors > 0, "there are no weights to be written to {}", folder);
  const WorkFolder work(folder + "/.converting");
  check_room(folder, files.bytes);
  nlohmann::json map = nlohmann::json::object();
  for (size_t p = 0; p < parts.size(); ++p) {
    const std::string name = parts.size() == 1 ? "model.safetensors"
                                               : fmt::format("model-{:05d}-of-{:05d}.safetensors", p + 1, parts.size());
    write_part(source, parts[p], work.path() + "/" + name, options);
    for (const int t : parts[p].tensors) map[source.tensors()[t].weight] = name;
    files.names.push_back(name);
  }
  if (parts.size() > 1) {
    const nlohmann::json index = {{"metadata", {{"total_size", files.bytes}}}, {"weight_map", std::move(map)}};
    const std::string path = work.path() + "/" + kIndexName;
    replace_file(path, [&](std::ostream& out) { out << index.dump(2) << "\n"; });
    files.names.emplace_back(kIndexName);
  }
  publish(work.path(), folder, files.names);
  return files;
}

void reshard_checkpoint(const std::string& folder, const std::string& save_dir, const ReshardOptions& options) {
  DS_CHECK_AS(
      ConfigError, checkpoint_kind(folder) == CheckpointKind::kNative,
      "{} is a checkpoint of the kind {}: only native ones have slices that can be cut anew. Any number of ranks "
      "loads any checkpoint without this",
      folder, name_of(checkpoint_kind(folder)));
  const std::string target = save_dir + "/" + options.tag;
  DS_CHECK_AS(ConfigError, options.overwrite || !is_directory(target),
              "{} exists: choose another folder or --as TAG, or replace it with --overwrite", target);
  const Manifest manifest = read_manifest(folder);
  make_directories(save_dir);
  check_room(save_dir, manifest.bytes());
  const auto source = TensorSource::open(folder);
  const std::string work = begin_save(save_dir, options.tag);
  try {
    for (int rank = 0; rank < options.ranks; ++rank) {
      Manifest part = write_rank(*source, work, rank, options);
      for (const ManifestFile& file : manifest.files) {
        if (rank == 0 && !file.name.ends_with(".safetensors")) part.files.push_back(copy_verified(folder, file, work));
      }
      finish_part(work, rank, part);
    }
    commit_save(save_dir, options.tag,
                {.ranks = options.ranks,
                 .info = resharded_info(manifest.info, options.ranks),
                 .write_latest = options.write_latest});
  } catch (...) {
    remove_directories(work);
    throw;
  }
}

int64_t parse_bytes(const std::string& text, std::string_view option) {
  constexpr double kUnits[] = {1e3, 1e6, 1e9, 1e12};
  constexpr double kBinaryUnits[] = {1024.0, 1048576.0, 1073741824.0, 1099511627776.0};
  constexpr std::string_view kLetters = "KMGT";
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);
  std::string unit;
  for (; *end != '\0'; ++end) {
    if (*end != ' ') unit += static_cast<char>(std::toupper(static_cast<unsigned char>(*end)));
  }
  double factor = unit.empty() || unit == "B" ? 1.0 : 0.0;
  const size_t place = unit.empty() ? std::string_view::npos : kLetters.find(unit[0]);
  if (place != std::string_view::npos) {
    if (unit.substr(1) == "B") factor = kUnits[place];
    if (unit.substr(1) == "IB") factor = kBinaryUnits[place];
  }
  const double bytes = number * factor;
  DS_CHECK_AS(ConfigError, std::isfinite(bytes) && bytes >= 1 && bytes < 9e18,
              "{} is \"{}\", expected a size such as 5GB", option, text);
  return static_cast<int64_t>(bytes);
}

}  // namespace deepscale
