// The bytes of a zip archive whose members are stored as they are, as torch.save writes them. They are made where and
// when they are asked for, by several threads at once, so that tensors go from where they stand to the disk without a
// copy of the archive. Each member's bytes begin at a multiple of 64 and are followed by their checksum, which is why
// none has to be read before it is written (format: PKWARE's APPNOTE.TXT 6.3, 4.3.9, with its 64-bit extensions).
// Torch-free.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "checkpoint/block_writer.h"

namespace deepscale {

/// Some bytes in memory.
struct BytePart {
  int64_t bytes = 0;
  /// Where they stand; called when the writer gets there, which keeps what it returns until it has passed.
  std::function<std::shared_ptr<const void>()> data;
  /// data() only says where they stand, so that any thread may ask for any of them.
  bool in_memory = false;
};

/// Bytes without an owner, which stay where they are.
[[nodiscard]] BytePart part_of(const void* data, int64_t bytes);
/// Bytes of its own.
[[nodiscard]] BytePart part_of(std::string bytes);

struct ZipMember {
  std::string name;             ///< inside the archive's folder
  std::vector<BytePart> parts;  ///< its bytes, one after the other

  [[nodiscard]] int64_t bytes() const;
};

class ZipStream {
 public:
  /// All names are put into `folder`.
  ZipStream(const std::string& folder, std::vector<ZipMember> members);

  [[nodiscard]] int64_t bytes() const { return bytes_; }
  [[nodiscard]] bool in_memory() const;
  /// For one thread. All threads together ask for each byte once, and begin blocks in ascending order: who gets to a
  /// checksum waits for the others' parts of what it is about. Throws IoError after give_up().
  [[nodiscard]] BlockSource source();
  /// Ends waits for bytes that will not be asked for any more.
  void give_up() noexcept;

 private:
  enum class Kind : uint8_t { kHeader, kPart, kChecksum, kDirectory };
  struct Segment {
    int64_t begin = 0;
    int64_t bytes = 0;
    Kind kind = Kind::kHeader;
    int member = 0;
    int part = 0;
    int64_t inside = 0;  ///< where a part begins in its member
  };
  struct Piece {
    int64_t begin = 0;  ///< in its member
    int64_t bytes = 0;
    uint32_t crc = 0;
  };
  struct Progress {
    int64_t header = 0;  ///< where it begins in the archive
    int64_t bytes = 0;
    int64_t summed = 0;
    std::vector<Piece> pieces;
  };
  class Reader;

  void add_segment(Kind kind, int64_t bytes, int member, int part = 0, int64_t inside = 0);
  void place(int member);
  [[nodiscard]] std::string extra_of(int member) const;
  [[nodiscard]] std::string header_of(int member) const;
  [[nodiscard]] std::string entry_of(int member, uint32_t crc) const;
  [[nodiscard]] std::string end() const;
  void note(int member, const Piece& piece);
  [[nodiscard]] uint32_t crc_of(int member);
  [[nodiscard]] std::string text_of(const Segment& segment);
  [[nodiscard]] const std::string& directory();

  std::string folder_;
  std::vector<ZipMember> members_;
  std::vector<Segment> segments_;
  int64_t bytes_ = 0;
  int64_t directory_begin_ = 0, directory_bytes_ = 0;

  std::mutex mutex_;
  std::condition_variable noted_;
  std::vector<Progress> progress_;
  bool gave_up_ = false;
  std::once_flag directory_made_;
  std::string directory_;
};

/// write_blocks() of an archive; one thread where parts are loaded on demand.
FileChecksums write_zip(const std::string& path, ZipStream& stream, const BlockWriteOptions& options = {});

}  // namespace deepscale
