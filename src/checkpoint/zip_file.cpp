#include "checkpoint/zip_file.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

#include "base/error.h"
#include "base/text.h"
#include "checkpoint/zip_fields.h"
#include "kernels/cpu/crc32.h"
#include "platform/files.h"

namespace deepscale {
namespace {

using namespace zip;

constexpr int64_t kLargestDirectory = int64_t{1} << 32;

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

}  // namespace

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
  DS_CHECK_AS(CheckpointError, kernels::crc32(bytes.data(), static_cast<int64_t>(bytes.size())) == member->crc,
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
      crc = kernels::crc32(buffer.data(), part, crc);
      done += part;
      if (read) read(part);
    }
    if (crc != member.crc || !member.stored) damaged.push_back(name);
  }
  return damaged;
}

}  // namespace deepscale
