// Reads zip archives whose members are stored as they are, as torch.save writes them: member bytes can be read in
// place. Format: PKWARE's APPNOTE.TXT 6.3, with its 64-bit extensions. Torch-free.
#pragma once

#include <cstdint>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <vector>

namespace deepscale {

/// An archive that is read. Everything that it says is checked against the file's size. Threads: one at a time.
class ZipFile {
 public:
  struct Member {
    int64_t begin = 0;  ///< first byte in the file
    int64_t bytes = 0;
    uint32_t crc = 0;
    bool stored = true;  ///< not compressed
  };

  /// Throws CheckpointError that says what is wrong; the caller names the file.
  static ZipFile open(const std::string& path);

  /// Name of the folder that holds all members ("archive"); empty when the first member is in none.
  [[nodiscard]] const std::string& folder() const { return folder_; }
  /// By name inside folder(); null when there is none. Throws CheckpointError for one that is compressed or cut off.
  [[nodiscard]] const Member* find(const std::string& name) const;
  /// The whole member, its checksum compared. Throws CheckpointError.
  [[nodiscard]] std::string read(const std::string& name);
  /// Reads all members and returns the names of those whose bytes are not those of their checksum. read: called with
  /// the bytes read so far since the last call. Throws CheckpointError.
  [[nodiscard]] std::vector<std::string> damaged_members(const std::function<void(int64_t bytes)>& read = {});
  /// Bytes [offset, offset + count) of the file. Throws CheckpointError when they cannot be read.
  void read_at(int64_t offset, void* destination, int64_t count);

 private:
  struct Directory {
    int64_t begin = 0;
    int64_t bytes = 0;
    int64_t count = 0;
  };
  Directory find_directory();
  void read_directory(const Directory& directory);
  int64_t data_begin(int64_t header);

  std::ifstream stream_;
  int64_t size_ = 0;
  std::string folder_;
  std::map<std::string, Member, std::less<>> members_;
};

}  // namespace deepscale
