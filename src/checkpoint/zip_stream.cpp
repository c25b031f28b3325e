#include "checkpoint/zip_stream.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "base/error.h"
#include "base/wait.h"
#include "checkpoint/zip_fields.h"
#include "kernels/cpu/crc32.h"

namespace deepscale {
namespace {

using zip::packed;

constexpr uint16_t kExtraPadding = 0x4246;  // what torch uses, too
constexpr uint16_t kVersion64 = 45;
constexpr uint16_t kChecksumFollows = 0x0008;
constexpr uint16_t kFirstDay = 0x0021;  // 1980-01-01: files do not depend on when they were written
constexpr int64_t kAlignment = 64;
constexpr int64_t kChecksumBytes = 16, kChecksum64Bytes = 24;
constexpr int64_t kHot = int64_t{64} << 10;  // bytes that are summed while the copy of them is in a near cache

uint32_t narrow(int64_t value) {
  return value >= zip::kIn64 ? zip::kIn64 : static_cast<uint32_t>(value);
}

bool is_wide(int64_t bytes) {
  return narrow(bytes) == zip::kIn64;
}

}  // namespace

BytePart part_of(const void* data, int64_t bytes) {
  return {bytes, [data] { return std::shared_ptr<const void>(std::shared_ptr<void>(), data); }, true};
}

BytePart part_of(std::string bytes) {
  const auto kept = std::make_shared<const std::string>(std::move(bytes));
  return {static_cast<int64_t>(kept->size()), [kept] { return std::shared_ptr<const void>(kept, kept->data()); }, true};
}

int64_t ZipMember::bytes() const {
  int64_t sum = 0;
  for (const BytePart& part : parts) sum += part.bytes;
  return sum;
}

// ---------------------------------------------------------------- layout
ZipStream::ZipStream(const std::string& folder, std::vector<ZipMember> members)
    : folder_(folder), members_(std::move(members)), progress_(members_.size()) {
  for (size_t m = 0; m < members_.size(); ++m) place(static_cast<int>(m));
  directory_begin_ = bytes_;
  for (size_t m = 0; m < members_.size(); ++m) {
    directory_bytes_ += static_cast<int64_t>(entry_of(static_cast<int>(m), 0).size());
  }
  add_segment(Kind::kDirectory, directory_bytes_ + static_cast<int64_t>(end().size()), 0);
}

void ZipStream::add_segment(Kind kind, int64_t bytes, int member, int part, int64_t inside) {
  if (bytes > 0) segments_.push_back({bytes_, bytes, kind, member, part, inside});
  bytes_ += bytes;
}

void ZipStream::place(int member) {
  Progress& progress = progress_[member];
  progress.header = bytes_;
  progress.bytes = members_[member].bytes();
  add_segment(Kind::kHeader, static_cast<int64_t>(header_of(member).size()), member);
  int64_t inside = 0;
  for (size_t p = 0; p < members_[member].parts.size(); ++p) {
    const int64_t bytes = members_[member].parts[p].bytes;
    add_segment(Kind::kPart, bytes, member, static_cast<int>(p), inside);
    inside += bytes;
  }
  add_segment(Kind::kChecksum, is_wide(progress.bytes) ? kChecksum64Bytes : kChecksumBytes, member);
}

std::string ZipStream::extra_of(int member) const {
  const Progress& progress = progress_[member];
  std::string extra;
  if (is_wide(progress.bytes)) extra = packed(zip::kExtra64, uint16_t{16}, uint64_t{0}, uint64_t{0});
  const auto name_bytes = static_cast<int64_t>(folder_.size() + 1 + members_[member].name.size());
  constexpr int64_t kPaddingHead = 4;
  const int64_t unpadded =
      progress.header + zip::kLocalBytes + name_bytes + static_cast<int64_t>(extra.size()) + kPaddingHead;
  const auto padding = static_cast<size_t>((kAlignment - unpadded % kAlignment) % kAlignment);
  return extra + packed(kExtraPadding, static_cast<uint16_t>(padding)) + std::string(padding, 'Z');
}

std::string ZipStream::header_of(int member) const {
  const std::string name = folder_ + "/" + members_[member].name, extra = extra_of(member);
  const uint32_t size = is_wide(progress_[member].bytes) ? zip::kIn64 : 0;
  return packed(zip::kLocalMark, kVersion64, kChecksumFollows, uint16_t{0}, uint16_t{0}, kFirstDay, uint32_t{0}, size,
                size, static_cast<uint16_t>(name.size()), static_cast<uint16_t>(extra.size())) +
         name + extra;
}

std::string ZipStream::entry_of(int member, uint32_t crc) const {
  const Progress& progress = progress_[member];
  const std::string name = folder_ + "/" + members_[member].name;
  const uint32_t size = narrow(progress.bytes), header = narrow(progress.header);
  std::string content;
  if (size == zip::kIn64)
    content += packed(static_cast<uint64_t>(progress.bytes), static_cast<uint64_t>(progress.bytes));
  if (header == zip::kIn64) content += packed(static_cast<uint64_t>(progress.header));
  const std::string extra =
      content.empty() ? "" : packed(zip::kExtra64, static_cast<uint16_t>(content.size())) + content;
  return packed(zip::kEntryMark, kVersion64, kVersion64, kChecksumFollows, uint16_t{0}, uint16_t{0}, kFirstDay, crc,
                size, size, static_cast<uint16_t>(name.size()), static_cast<uint16_t>(extra.size()), uint16_t{0},
                uint16_t{0}, uint16_t{0}, uint32_t{0}, header) +
         name + extra;
}

std::string ZipStream::end() const {
  std::string text;
  const auto count = static_cast<uint64_t>(members_.size());
  if (count >= zip::kCountIn64 || is_wide(directory_begin_) || is_wide(directory_bytes_)) {
    text += packed(zip::kEnd64Mark, uint64_t{zip::kEnd64Bytes - 12}, kVersion64, kVersion64, uint32_t{0}, uint32_t{0},
                   count, count, static_cast<uint64_t>(directory_bytes_), static_cast<uint64_t>(directory_begin_));
    text += packed(zip::kLocator64Mark, uint32_t{0}, static_cast<uint64_t>(directory_begin_ + directory_bytes_),
                   uint32_t{1});
  }
  const auto short_count = static_cast<uint16_t>(std::min<uint64_t>(count, zip::kCountIn64));
  return text + packed(zip::kEndMark, uint16_t{0}, uint16_t{0}, short_count, short_count, narrow(directory_bytes_),
                       narrow(directory_begin_), uint16_t{0});
}

// ---------------------------------------------------------------- checksums
void ZipStream::note(int member, const Piece& piece) {
  const std::lock_guard lock(mutex_);
  Progress& progress = progress_[member];
  progress.pieces.push_back(piece);
  progress.summed += piece.bytes;
  if (progress.summed == progress.bytes) noted_.notify_all();
}

void ZipStream::give_up() noexcept {
  const std::lock_guard lock(mutex_);
  gave_up_ = true;
  noted_.notify_all();
}

uint32_t ZipStream::crc_of(int member) {
  std::unique_lock lock(mutex_);
  Progress& progress = progress_[member];
  wait_until_true(noted_, lock, [&] { return gave_up_ || progress.summed == progress.bytes; });
  DS_CHECK_AS(IoError, progress.summed == progress.bytes, "another part of the file could not be written");
  std::sort(progress.pieces.begin(), progress.pieces.end(),
            [](const Piece& a, const Piece& b) { return a.begin < b.begin; });
  uint32_t crc = 0;
  for (const Piece& piece : progress.pieces) crc = kernels::crc32_of_both(crc, piece.crc, piece.bytes);
  progress.pieces.assign(progress.bytes > 0 ? 1 : 0, {0, progress.bytes, crc});
  return crc;
}

const std::string& ZipStream::directory() {
  std::call_once(directory_made_, [this] {
    std::string text;
    for (size_t m = 0; m < members_.size(); ++m) text += entry_of(static_cast<int>(m), crc_of(static_cast<int>(m)));
    directory_ = text + end();
  });
  return directory_;
}

std::string ZipStream::text_of(const Segment& segment) {
  if (segment.kind == Kind::kHeader) return header_of(segment.member);
  const uint32_t crc = crc_of(segment.member);
  const int64_t bytes = progress_[segment.member].bytes;
  if (is_wide(bytes)) {
    return packed(zip::kChecksumMark, crc, static_cast<uint64_t>(bytes), static_cast<uint64_t>(bytes));
  }
  return packed(zip::kChecksumMark, crc, static_cast<uint32_t>(bytes), static_cast<uint32_t>(bytes));
}

// ---------------------------------------------------------------- bytes
class ZipStream::Reader {
 public:
  explicit Reader(ZipStream& stream) : stream_(stream) {}

  void copy(int64_t offset, int64_t bytes, char* destination) {
    const auto& segments = stream_.segments_;
    const int64_t end = offset + bytes;
    auto segment = std::upper_bound(segments.begin(), segments.end(), offset,
                                    [](int64_t at, const Segment& s) { return at < s.begin; }) -
                   1;
    for (; offset < end; ++segment) {
      const int64_t inside = offset - segment->begin, part = std::min(end - offset, segment->bytes - inside);
      copy_segment(*segment, inside, part, destination);
      destination += part;
      offset += part;
    }
  }

 private:
  void copy_segment(const Segment& segment, int64_t inside, int64_t bytes, char* destination) {
    if (segment.kind == Kind::kPart) return copy_part(segment, inside, bytes, destination);
    if (segment.kind == Kind::kDirectory) {
      std::memcpy(destination, stream_.directory().data() + inside, static_cast<size_t>(bytes));
      return;
    }
    std::memcpy(destination, stream_.text_of(segment).data() + inside, static_cast<size_t>(bytes));
  }

  void copy_part(const Segment& segment, int64_t inside, int64_t bytes, char* destination) {
    if (loaded_ != &segment) {
      data_.reset();
      data_ = stream_.members_[segment.member].parts[segment.part].data();
      loaded_ = &segment;
    }
    const char* const from = static_cast<const char*>(data_.get()) + inside;
    uint32_t crc = 0;
    for (int64_t done = 0; done < bytes;) {
      const int64_t step = std::min(kHot, bytes - done);
      std::memcpy(destination + done, from + done, static_cast<size_t>(step));
      crc = kernels::crc32(destination + done, step, crc);
      done += step;
    }
    stream_.note(segment.member, {segment.inside + inside, bytes, crc});
    if (inside + bytes == segment.bytes) {
      data_.reset();
      loaded_ = nullptr;
    }
  }

  ZipStream& stream_;
  const Segment* loaded_ = nullptr;
  std::shared_ptr<const void> data_;
};

bool ZipStream::in_memory() const {
  return std::all_of(members_.begin(), members_.end(), [](const ZipMember& member) {
    return std::all_of(member.parts.begin(), member.parts.end(), [](const BytePart& part) { return part.in_memory; });
  });
}

BlockSource ZipStream::source() {
  return [reader = std::make_shared<Reader>(*this)](int64_t offset, int64_t bytes, char* buffer) {
    reader->copy(offset, bytes, buffer);
    return buffer;
  };
}

FileChecksums write_zip(const std::string& path, ZipStream& stream, const BlockWriteOptions& options) {
  BlockWriteOptions own = options;
  if (!stream.in_memory()) own.threads = 1;
  own.on_failure = [&stream] { stream.give_up(); };
  return write_blocks(
      path, stream.bytes(), [&stream] { return stream.source(); }, own);
}

}  // namespace deepscale
