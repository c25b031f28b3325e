// Reads parts of a checkpoint's files and checks every block that it touches, so that a value that is returned is the
// one that was saved. Torch-free.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/manifest.h"
#include "platform/async_file.h"
#include "platform/kept_memory.h"

namespace deepscale {

/// Bytes [begin, begin + bytes) of a file.
struct FilePart {
  int64_t begin = 0;
  int64_t bytes = 0;
  void* destination = nullptr;
};

/// What is wanted of one file; nothing of it is read when there are no parts. The file must outlive the reading.
struct FileParts {
  const ManifestFile* file = nullptr;
  std::vector<FilePart> parts;
};

/// Reads parts of files of a folder, some megabytes ahead. threads: this computation may use; half of them check and
/// copy. memory: that is read into, where the caller keeps some. Throws CheckpointError that names file and bytes when
/// a file is missing, has another size, or a block's checksum is wrong; IoError when it cannot be read.
void read_verified(const std::string& folder, std::vector<FileParts> files, int threads = 1,
                   KeptMemory* memory = nullptr);

/// Files that are not there, or not of the size that the manifest says, a line each.
[[nodiscard]] std::vector<std::string> missing_files(const std::string& folder, const Manifest& manifest);

/// How to verify files that are loaded afterwards: through the page cache, so that the disk is read once; past it where
/// they would push each other out before they are used.
[[nodiscard]] FileCaching caching_before_loading(const Manifest& manifest);

/// Reads everything and returns what is wrong, a line each; empty when the file is as it was meant.
std::vector<std::string> verify_file(const std::string& folder, const ManifestFile& file, int threads = 1,
                                     FileCaching caching = FileCaching::kDirect);

/// A number of threads: the caller's alone, which is one of several that read at once, and takes 12 MiB for it.
inline constexpr int kOneOfSeveral = 0;

/// Reads blocks [first, first + count) and returns those whose checksum is another one. read: called with the bytes of
/// each block that was read, by one thread at a time. Throws as read_verified for a file that is missing or has another
/// size, and IoError.
std::vector<int64_t> damaged_blocks(const std::string& folder, const ManifestFile& file, int64_t first, int64_t count,
                                    const std::function<void(int64_t bytes)>& read = {}, int threads = 1,
                                    FileCaching caching = FileCaching::kDirect);
/// Ascending damaged blocks as lines for people; those that follow one another are one line.
std::vector<std::string> damage_lines(const std::string& folder, const ManifestFile& file,
                                      const std::vector<int64_t>& blocks);

/// The tensors of one checkpoint. Threads: read() from several at once.
class CheckpointTensors {
 public:
  /// threads: what read() is going to be told; the memory that it needs for all files together is got meanwhile. Throws
  /// CheckpointError: no manifest, damaged, files missing or of another size (their bytes are not read yet).
  explicit CheckpointTensors(std::string folder, int threads = 0);

  struct Request {
    std::string name;
    int64_t offset = 0;  ///< of the flattened tensor
    int64_t numel = 0;
    void* destination = nullptr;  ///< in the tensor's own dtype
  };
  /// All of them, each file once. Throws as read_verified, and CheckpointError for unknown names or ranges.
  void read(const std::vector<Request>& requests, int threads = 1) const;

  struct FileRequest {
    std::string file;
    int64_t begin = 0;
    int64_t bytes = 0;
    void* destination = nullptr;
  };
  /// Bytes of files, whatever they hold. Throws as read_verified, and CheckpointError for a file that is not listed.
  void read_files(const std::vector<FileRequest>& requests, int threads = 1) const;

  /// Reads a whole file that holds no tensors. Throws CheckpointError when it is damaged, or not of this checkpoint.
  void check_file(const std::string& name) const;

  [[nodiscard]] const Manifest& manifest() const { return manifest_; }
  [[nodiscard]] const std::string& folder() const { return folder_; }
  [[nodiscard]] const ManifestTensor* find(const std::string& name) const;

 private:
  /// Position in the manifest. Throws CheckpointError.
  [[nodiscard]] size_t index_of(const std::string& file) const;
  /// All files of the manifest, of which nothing is wanted yet.
  [[nodiscard]] std::vector<FileParts> no_parts() const;

  std::string folder_;
  Manifest manifest_;
  std::map<std::string, int> places_;
  std::unique_ptr<KeptMemory> memory_;  ///< that is read into, kept from one read() to the next
};

}  // namespace deepscale
