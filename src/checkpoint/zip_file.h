// Zip archives whose members are stored as they are, as torch.save writes them: member bytes can be read in place.
// Format: PKWARE's APPNOTE.TXT 6.3, with its 64-bit extensions. Torch-free.
#pragma once

#include <cstdint>
#include <fstream>
#include <functional>
#include <map>
#include <ostream>
#include <string>
#include <string_view>
#include <vector>

namespace deepscale {

/// CRC-32 of zip and zlib; `before` is that of the bytes in front.
uint32_t crc32(const void* data, size_t bytes, uint32_t before = 0);

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

/// Writes an archive from front to back. Each member's bytes begin at a multiple of 64.
class ZipWriter {
 public:
  /// All names are put into `folder`.
  ZipWriter(std::ostream& out, std::string folder) : out_(out), folder_(std::move(folder)) {}

  void add(const std::string& name, const void* data, int64_t bytes);
  /// Writes the directory; nothing may be added after it. The caller checks the stream.
  void finish();

 private:
  struct Written {
    std::string name;
    int64_t header = 0;
    int64_t bytes = 0;
    uint32_t crc = 0;
  };
  void put(std::string_view bytes);

  std::ostream& out_;
  std::string folder_;
  int64_t position_ = 0;
  std::vector<Written> written_;
};

}  // namespace deepscale
