// The safetensors format: named tensors in one file that can be read without running code and without surprises.
//
//   bytes 0..7     header length N, little endian
//   bytes 8..8+N   JSON: {"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...,
//                  "__metadata__": {"key": "text"}}, padded with spaces
//   rest           the tensors' bytes, little endian, row-major; offsets count from here, without holes or overlaps
// Everything a header says is checked against the file's size before it is used. Torch-free.
#pragma once

#include <cstdint>
#include <fstream>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"

namespace deepscale {

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;
  int64_t begin = 0;  ///< byte range in the data part
  int64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<SafetensorsEntry> entries;  ///< in the order of their bytes
  std::map<std::string, std::string> metadata;
};

/// The format's names of element types: "BF16" <-> kBFloat16. Nothing for one that we do not have.
std::optional<DType> safetensors_dtype(std::string_view name);
std::string_view safetensors_name(DType dtype);

/// Strict JSON: no comments, no name twice. Memory in proportion to what is accepted: the first entry that lies ends
/// it. data_bytes: size of the data part. file: for messages. Throws CheckpointError that names the file and the
/// tensor.
SafetensorsHeader parse_safetensors_header(std::string_view json, int64_t data_bytes, const std::string& file);

/// An open file, its header checked. Threads: one at a time.
class SafetensorsFile {
 public:
  /// Throws CheckpointError for a file that is missing, cut or damaged.
  static SafetensorsFile open(const std::string& path);

  [[nodiscard]] const SafetensorsHeader& header() const { return header_; }
  /// Null when there is no such tensor.
  [[nodiscard]] const SafetensorsEntry* find(std::string_view name) const;
  /// destination: end - begin bytes. Throws CheckpointError when the file cannot be read.
  void read(const SafetensorsEntry& entry, void* destination);
  /// The part of an entry that begins at byte `offset` of it.
  void read(const SafetensorsEntry& entry, int64_t offset, int64_t bytes, void* destination);

 private:
  SafetensorsFile(std::string path, std::ifstream stream) : path_(std::move(path)), stream_(std::move(stream)) {}

  std::string path_;
  std::ifstream stream_;
  SafetensorsHeader header_;
  std::vector<size_t> by_name_;  // indexes of entries, in the order of their names
  int64_t data_begin_ = 0;
};

/// A tensor to be written: `data` holds its bytes, row-major.
struct SafetensorsItem {
  std::string name;
  DType dtype = DType::kFloat32;
  std::vector<int64_t> shape;
  const void* data = nullptr;

  [[nodiscard]] int64_t bytes() const;
};

/// The length and the header of a file with these tensors, whose bytes follow one after the other; `data` is not read.
std::string safetensors_header_text(const std::vector<SafetensorsItem>& items,
                                    const std::map<std::string, std::string>& metadata);

/// Writes beside the path and renames, so a reader never sees half a file. Throws IoError.
void write_safetensors(const std::string& path, const std::vector<SafetensorsItem>& items,
                       const std::map<std::string, std::string>& metadata = {});

}  // namespace deepscale
