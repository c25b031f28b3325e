#include "checkpoint/zip_file.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "platform/files.h"

namespace deepscale {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little endian, and so is every target");

constexpr uint32_t kLocalMark = 0x04034b50;
constexpr uint32_t kEntryMark = 0x02014b50;
constexpr uint32_t kEndMark = 0x06054b50;
constexpr uint32_t kEnd64Mark = 0x06064b50;
constexpr uint32_t kLocator64Mark = 0x07064b50;
constexpr int64_t kLocalBytes = 30;
constexpr int64_t kEntryBytes = 46;
constexpr int64_t kEndBytes = 22;
constexpr int64_t kEnd64Bytes = 56;
constexpr int64_t kLocator64Bytes = 20;
constexpr uint16_t kExtra64 = 0x0001;
constexpr uint16_t kExtraPadding = 0x4246;  // what torch uses, too
constexpr uint32_t kIn64 = 0xFFFFFFFF;      // the value stands in the 64-bit extension
constexpr uint16_t kCountIn64 = 0xFFFF;
constexpr uint16_t kVersion64 = 45;
constexpr uint16_t kFirstDay = 0x0021;  // 1980-01-01: files do not depend on when they were written
constexpr int64_t kAlignment = 64;
constexpr int64_t kLargestDirectory = int64_t{1} << 32;

using CrcTables = std::array<std::array<uint32_t, 256>, 8>;

/// Tables for eight bytes at once ("slicing by 8").
constexpr CrcTables make_crc_tables() {
  CrcTables tables{};
  for (uint32_t byte = 0; byte < 256; ++byte) {
    uint32_t value = byte;
    for (int bit = 0; bit < 8; ++bit) value = (value & 1) != 0 ? 0xEDB88320 ^ (value >> 1) : value >> 1;
    tables[0][byte] = value;
  }
  for (size_t table = 1; table < 8; ++table) {
    for (size_t byte = 0; byte < 256; ++byte) {
      const uint32_t before = tables[table - 1][byte];
      tables[table][byte] = tables[0][before & 0xFF] ^ (before >> 8);
    }
  }
  return tables;
}
constexpr CrcTables kCrc = make_crc_tables();

/// Reads numbers from the front of bytes.
class Fields {
 public:
  explicit Fields(std::string_view bytes) : bytes_(bytes) {}

  template <typename T>
  T take() {
    T value{};
    DS_CHECK_AS(CheckpointError, bytes_.size() >= sizeof(T), "a field is cut off");
    std::memcpy(&value, bytes_.data(), sizeof(T));
    bytes_.remove_prefix(sizeof(T));
    return value;
  }
  std::string_view take_bytes(size_t count) {
    DS_CHECK_AS(CheckpointError, bytes_.size() >= count, "a field is cut off");
    const std::string_view part = bytes_.substr(0, count);
    bytes_.remove_prefix(count);
    return part;
  }
  void skip(size_t count) { (void)take_bytes(count); }
  [[nodiscard]] bool empty() const { return bytes_.empty(); }

 private:
  std::string_view bytes_;
};

template <typename... T>
std::string packed(T... values) {
  std::string bytes;
  (bytes.append(reinterpret_cast<const char*>(&values), sizeof(values)), ...);
  return bytes;
}

/// The value of a 32-bit field, or, when it says so, the next one of the 64-bit extension.
int64_t wide(uint32_t field, Fields& extension) {
  if (field != kIn64) return field;
  const auto value = extension.take<uint64_t>();
  DS_CHECK_AS(CheckpointError, value <= uint64_t{1} << 62, "a size is impossible");
  return static_cast<int64_t>(value);
}

std::string_view extension_of(std::string_view extra) {
  Fields fields(extra);
  while (!fields.empty()) {
    const auto kind = fields.take<uint16_t>();
    const std::string_view content = fields.take_bytes(fields.take<uint16_t>());
    if (kind == kExtra64) return content;
  }
  return {};
}

using Ranges = std::vector<std::pair<int64_t, int64_t>>;  // first byte, first byte behind

/// Parts that share bytes let a small file hold any amount of data, and two readers see different files.
void check_apart(Ranges ranges) {
  std::sort(ranges.begin(), ranges.end());
  for (size_t i = 1; i < ranges.size(); ++i) {
    DS_CHECK_AS(CheckpointError, ranges[i - 1].second <= ranges[i].first,
                "two of its parts overlap: one reaches to byte {}, another begins at {}", ranges[i - 1].second,
                ranges[i].first);
  }
}

uint32_t narrow(int64_t value) {
  return value >= kIn64 ? kIn64 : static_cast<uint32_t>(value);
}

}  // namespace

uint32_t crc32(const void* data, size_t bytes, uint32_t before) {
  const auto* next = static_cast<const unsigned char*>(data);
  uint32_t crc = ~before;
  for (; bytes >= 8; bytes -= 8, next += 8) {
    uint32_t low = 0;
    std::memcpy(&low, next, 4);
    low ^= crc;
    crc = kCrc[7][low & 0xFF] ^ kCrc[6][low >> 8 & 0xFF] ^ kCrc[5][low >> 16 & 0xFF] ^ kCrc[4][low >> 24] ^
          kCrc[3][next[4]] ^ kCrc[2][next[5]] ^ kCrc[1][next[6]] ^ kCrc[0][next[7]];
  }
  for (; bytes > 0; --bytes, ++next) crc = kCrc[0][(crc ^ *next) & 0xFF] ^ (crc >> 8);
  return ~crc;
}

ZipFile ZipFile::open(const std::string& path) {
  ZipFile file;
  file.size_ = file_size(path).value_or(0);
  file.stream_.open(native_path(path).c_str(), std::ios::binary);
  DS_CHECK_AS(CheckpointError, file.stream_.good(), "it cannot be opened");
  file.read_directory(file.find_directory());
  return file;
}

void ZipFile::read_at(int64_t offset, void* destination, int64_t count) {
  DS_CHECK_AS(CheckpointError, offset >= 0 && count >= 0 && count <= size_ && offset <= size_ - count,
              "{} bytes from {} on are not inside its {} bytes", count, offset, size_);
  stream_.clear();
  stream_.seekg(offset);
  stream_.read(static_cast<char*>(destination), count);
  DS_CHECK_AS(CheckpointError, stream_.good(), "it became shorter while it was read");
}

ZipFile::Directory ZipFile::find_directory() {
  constexpr int64_t kLongestComment = 0xFFFF;
  std::string tail(static_cast<size_t>(std::min(size_, kEndBytes + kLongestComment + kLocator64Bytes)), '\0');
  read_at(size_ - static_cast<int64_t>(tail.size()), tail.data(), static_cast<int64_t>(tail.size()));
  size_t end = tail.rfind(packed(kEndMark));
  // The mark may also be part of a comment: the right one's comment reaches to the end of the file.
  while (end != std::string::npos) {
    uint16_t comment = 0;
    if (end + kEndBytes <= tail.size()) std::memcpy(&comment, tail.data() + end + kEndBytes - 2, 2);
    if (end + kEndBytes + comment == tail.size()) break;
    end = end == 0 ? std::string::npos : tail.rfind(packed(kEndMark), end - 1);
  }
  DS_CHECK_AS(CheckpointError, end != std::string::npos, "its directory is missing");
  Fields fields(std::string_view(tail).substr(end + 10));
  Directory directory;
  directory.count = fields.take<uint16_t>();
  directory.bytes = fields.take<uint32_t>();
  directory.begin = fields.take<uint32_t>();
  if (directory.count == kCountIn64 || directory.bytes == kIn64 || directory.begin == kIn64) {
    DS_CHECK_AS(CheckpointError, end >= static_cast<size_t>(kLocator64Bytes), "its 64-bit directory is missing");
    Fields locator(std::string_view(tail).substr(end - kLocator64Bytes));
    DS_CHECK_AS(CheckpointError, locator.take<uint32_t>() == kLocator64Mark, "its 64-bit directory is missing");
    locator.skip(4);
    std::string record(kEnd64Bytes, '\0');
    read_at(static_cast<int64_t>(locator.take<uint64_t>()), record.data(), kEnd64Bytes);
    Fields wide_fields(record);
    DS_CHECK_AS(CheckpointError, wide_fields.take<uint32_t>() == kEnd64Mark, "its 64-bit directory is damaged");
    wide_fields.skip(28);
    directory.count = static_cast<int64_t>(wide_fields.take<uint64_t>());
    directory.bytes = static_cast<int64_t>(wide_fields.take<uint64_t>());
    directory.begin = static_cast<int64_t>(wide_fields.take<uint64_t>());
  }
  DS_CHECK_AS(CheckpointError,
              directory.count >= 0 && directory.bytes >= 0 && directory.bytes <= kLargestDirectory &&
                  directory.count <= directory.bytes / kEntryBytes,
              "its directory is damaged");
  return directory;
}

int64_t ZipFile::data_begin(int64_t header) {
  std::string bytes(kLocalBytes, '\0');
  read_at(header, bytes.data(), kLocalBytes);
  Fields fields(bytes);
  DS_CHECK_AS(CheckpointError, fields.take<uint32_t>() == kLocalMark, "a part's header is damaged");
  fields.skip(22);
  const int64_t name = fields.take<uint16_t>();
  return header + kLocalBytes + name + fields.take<uint16_t>();
}

void ZipFile::read_directory(const Directory& directory) {
  DS_CHECK_AS(CheckpointError, directory.begin >= 0 && directory.bytes <= size_, "its directory is damaged");
  std::string bytes(static_cast<size_t>(directory.bytes), '\0');
  read_at(directory.begin, bytes.data(), directory.bytes);
  Fields fields(bytes);
  Ranges taken;
  for (int64_t i = 0; i < directory.count; ++i) {
    DS_CHECK_AS(CheckpointError, fields.take<uint32_t>() == kEntryMark, "its directory is damaged");
    fields.skip(6);
    Member member;
    const bool not_compressed = fields.take<uint16_t>() == 0;
    fields.skip(4);
    member.crc = fields.take<uint32_t>();
    const auto packed_bytes = fields.take<uint32_t>();
    const auto whole_bytes = fields.take<uint32_t>();
    const auto name_bytes = fields.take<uint16_t>();
    const auto extra_bytes = fields.take<uint16_t>();
    const auto comment_bytes = fields.take<uint16_t>();
    fields.skip(8);
    const auto header = fields.take<uint32_t>();
    std::string name(fields.take_bytes(name_bytes));
    Fields extension(extension_of(fields.take_bytes(extra_bytes)));
    fields.skip(comment_bytes);
    member.bytes = wide(whole_bytes, extension);
    const int64_t in_file = wide(packed_bytes, extension);
    member.stored = in_file == member.bytes && not_compressed;
    const int64_t local = wide(header, extension);
    member.begin = data_begin(local);
    DS_CHECK_AS(CheckpointError, in_file <= directory.begin && member.begin <= directory.begin - in_file,
                "its part \"{}\" is cut off", printable(name));
    taken.emplace_back(local, member.begin + in_file);
    if (i == 0) folder_ = name.substr(0, std::min(name.find('/'), name.size()));
    const bool is_new = members_.emplace(name, member).second;
    DS_CHECK_AS(CheckpointError, is_new, "it has two parts \"{}\"", printable(name));
  }
  check_apart(std::move(taken));
}

const ZipFile::Member* ZipFile::find(const std::string& name) const {
  const auto found = members_.find(folder_ + "/" + name);
  if (found == members_.end()) return nullptr;
  DS_CHECK_AS(CheckpointError, found->second.stored, "its part \"{}\" is compressed, which torch.save does not do",
              printable(name));
  return &found->second;
}

std::string ZipFile::read(const std::string& name) {
  const Member* const member = find(name);
  DS_CHECK_AS(CheckpointError, member != nullptr, "it has no part \"{}\"", printable(name));
  std::string bytes(static_cast<size_t>(member->bytes), '\0');
  read_at(member->begin, bytes.data(), member->bytes);
  DS_CHECK_AS(CheckpointError, crc32(bytes.data(), bytes.size()) == member->crc,
              "its part \"{}\" does not have its checksum", name);
  return bytes;
}

std::vector<std::string> ZipFile::damaged_members(const std::function<void(int64_t bytes)>& read) {
  constexpr int64_t kPart = int64_t{4} << 20;
  std::vector<char> buffer(static_cast<size_t>(std::min(kPart, size_)));
  std::vector<std::string> damaged;
  for (const auto& [name, member] : members_) {
    uint32_t crc = 0;
    for (int64_t done = 0; done < member.bytes;) {
      const int64_t part = std::min(kPart, member.bytes - done);
      read_at(member.begin + done, buffer.data(), part);
      crc = crc32(buffer.data(), static_cast<size_t>(part), crc);
      done += part;
      if (read) read(part);
    }
    if (crc != member.crc || !member.stored) damaged.push_back(name);
  }
  return damaged;
}

void ZipWriter::put(std::string_view bytes) {
  out_.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
  position_ += static_cast<int64_t>(bytes.size());
}

void ZipWriter::add(const std::string& name, const void* data, int64_t bytes) {
  Written member{folder_ + "/" + name, position_, bytes, crc32(data, static_cast<size_t>(bytes))};
  std::string extra;
  const uint32_t size = narrow(bytes);
  if (size == kIn64) {
    extra = packed(kExtra64, uint16_t{16}, static_cast<uint64_t>(bytes), static_cast<uint64_t>(bytes));
  }
  const int64_t unpadded = position_ + kLocalBytes + static_cast<int64_t>(member.name.size() + extra.size()) +
                           4;  // 4: the padding's own head
  const auto padding = static_cast<size_t>((kAlignment - unpadded % kAlignment) % kAlignment);
  extra += packed(kExtraPadding, static_cast<uint16_t>(padding)) + std::string(padding, 'Z');
  put(packed(kLocalMark, kVersion64, uint16_t{0}, uint16_t{0}, uint16_t{0}, kFirstDay, member.crc, size, size,
             static_cast<uint16_t>(member.name.size()), static_cast<uint16_t>(extra.size())));
  put(member.name);
  put(extra);
  put({static_cast<const char*>(data), static_cast<size_t>(bytes)});
  written_.push_back(std::move(member));
}

void ZipWriter::finish() {
  const int64_t begin = position_;
  for (const Written& member : written_) {
    const uint32_t size = narrow(member.bytes);
    const uint32_t header = narrow(member.header);
    std::string content;
    if (size == kIn64) content += packed(static_cast<uint64_t>(member.bytes), static_cast<uint64_t>(member.bytes));
    if (header == kIn64) content += packed(static_cast<uint64_t>(member.header));
    const std::string extra = content.empty() ? "" : packed(kExtra64, static_cast<uint16_t>(content.size())) + content;
    put(packed(kEntryMark, kVersion64, kVersion64, uint16_t{0}, uint16_t{0}, uint16_t{0}, kFirstDay, member.crc, size,
               size, static_cast<uint16_t>(member.name.size()), static_cast<uint16_t>(extra.size()), uint16_t{0},
               uint16_t{0}, uint16_t{0}, uint32_t{0}, header));
    put(member.name);
    put(extra);
  }
  const int64_t bytes = position_ - begin;
  const auto count = static_cast<uint64_t>(written_.size());
  if (count >= kCountIn64 || begin >= kIn64 || bytes >= kIn64) {
    const auto at = static_cast<uint64_t>(position_);
    put(packed(kEnd64Mark, uint64_t{kEnd64Bytes - 12}, kVersion64, kVersion64, uint32_t{0}, uint32_t{0}, count, count,
               static_cast<uint64_t>(bytes), static_cast<uint64_t>(begin)));
    put(packed(kLocator64Mark, uint32_t{0}, at, uint32_t{1}));
  }
  const auto short_count = static_cast<uint16_t>(std::min<uint64_t>(count, kCountIn64));
  put(packed(kEndMark, uint16_t{0}, uint16_t{0}, short_count, short_count, narrow(bytes), narrow(begin), uint16_t{0}));
}

}  // namespace deepscale
