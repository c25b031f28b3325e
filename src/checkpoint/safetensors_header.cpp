// The header is read event by event, so that the first entry that lies ends it: a header may have 100 MB, and a
// document of it would have many times that.
#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>

#include "base/checked_math.h"
#include "base/error.h"
#include "base/text.h"
#include "checkpoint/safetensors.h"

namespace deepscale {
namespace {

constexpr int64_t kLargestSize = int64_t{1} << 62;
constexpr int kDeepest = 64;  // values of fields that we do not know

struct DTypeName {
  std::string_view name;
  DType dtype;
};
constexpr std::array<DTypeName, 10> kDTypeNames = {{{"F64", DType::kFloat64},
                                                    {"F32", DType::kFloat32},
                                                    {"F16", DType::kFloat16},
                                                    {"BF16", DType::kBFloat16},
                                                    {"I64", DType::kInt64},
                                                    {"I32", DType::kInt32},
                                                    {"I16", DType::kInt16},
                                                    {"I8", DType::kInt8},
                                                    {"U8", DType::kUInt8},
                                                    {"BOOL", DType::kBool}}};

class HeaderReader : public nlohmann::json_sax<nlohmann::json> {
 public:
  HeaderReader(int64_t data_bytes, const std::string& file) : data_bytes_(data_bytes), file_(file) {}

  SafetensorsHeader take() { return std::move(header_); }

  bool null() override {
    if (place_ == Place::kHeader && is_metadata()) return true;
    return other("null");
  }
  bool boolean(bool) override { return other("true or false"); }
  /// Those below 0; the others arrive as number_unsigned.
  bool number_integer(number_integer_t) override { return other("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return other("a fraction"); }
  bool binary(binary_t&) override { return false; }
  bool number_unsigned(number_unsigned_t value) override;
  bool string(string_t& value) override;
  bool start_object(std::size_t) override;
  bool end_object() override;
  bool start_array(std::size_t) override;
  bool end_array() override;
  bool key(string_t& value) override;
  bool parse_error(std::size_t position, const std::string&, const nlohmann::json::exception& error) override;

 private:
  enum class Place { kStart, kHeader, kMetadata, kEntry, kShape, kOffsets, kUnknown };
  enum class Field { kDType, kShape, kOffsets, kUnknown };

  [[nodiscard]] bool is_metadata() const { return name_ == "__metadata__"; }
  [[nodiscard]] std::string where() const {
    return fmt::format("safetensors file {}, tensor {}", file_, printable(name_));
  }
  bool other(const char* what);
  bool open_unknown();
  void close_unknown();
  void begin_entry();
  void end_entry();

  int64_t data_bytes_;
  const std::string& file_;
  SafetensorsHeader header_;
  Place place_ = Place::kStart;
  int unknown_depth_ = 0;
  bool metadata_seen_ = false;
  std::string name_;  // the key of the header that is being read
  std::string metadata_key_;
  // Of the entry that is being read:
  Field field_ = Field::kUnknown;
  std::optional<DType> dtype_;
  std::optional<std::vector<int64_t>> shape_;
  std::optional<std::vector<int64_t>> offsets_;
};

/// A value that no field has. Inside of fields that we do not know, everything may stand.
bool HeaderReader::other(const char* what) {
  switch (place_) {
    case Place::kUnknown:
      return true;
    case Place::kStart:
      ds_throw<CheckpointError>("safetensors file {}: the header is no object but {}", file_, what);
    case Place::kHeader:
      DS_CHECK_AS(CheckpointError, !is_metadata(), "safetensors file {}: __metadata__ is no object but {}", file_,
                  what);
      ds_throw<CheckpointError>("{}: needs dtype, shape and data_offsets, found {}", where(), what);
    case Place::kMetadata:
      ds_throw<CheckpointError>("safetensors file {}: __metadata__.{} is no text but {}", file_,
                                printable(metadata_key_), what);
    case Place::kShape:
      ds_throw<CheckpointError>("{}: impossible shape: a size is {}", where(), what);
    case Place::kOffsets:
      ds_throw<CheckpointError>("{}: data_offsets has {}, needs two positions that are inside the file", where(), what);
    case Place::kEntry:
      break;
  }
  DS_CHECK_AS(CheckpointError, field_ != Field::kDType, "{}: needs dtype, shape and data_offsets; dtype is {}", where(),
              what);
  DS_CHECK_AS(CheckpointError, field_ != Field::kShape, "{}: \"shape\" is not a list but {}", where(), what);
  DS_CHECK_AS(CheckpointError, field_ != Field::kOffsets, "{}: data_offsets is not a pair but {}", where(), what);
  return true;
}

bool HeaderReader::open_unknown() {
  ++unknown_depth_;
  DS_CHECK_AS(CheckpointError, unknown_depth_ <= kDeepest, "{}: the header is damaged: nested deeper than {} levels",
              where(), kDeepest);
  place_ = Place::kUnknown;
  return true;
}

void HeaderReader::close_unknown() {
  if (--unknown_depth_ == 0) place_ = Place::kEntry;
}

bool HeaderReader::number_unsigned(number_unsigned_t value) {
  if (place_ == Place::kShape) {
    DS_CHECK_AS(CheckpointError, value <= static_cast<uint64_t>(kLargestSize), "{}: impossible shape: a size is {}",
                where(), value);
    shape_->push_back(static_cast<int64_t>(value));
    return true;
  }
  if (place_ == Place::kOffsets) {
    DS_CHECK_AS(CheckpointError, value <= static_cast<uint64_t>(data_bytes_),
                "{}: byte {} is not inside the file, which holds {} bytes of data (is it cut off?)", where(), value,
                data_bytes_);
    DS_CHECK_AS(CheckpointError, offsets_->size() < 2, "{}: data_offsets is not a pair", where());
    offsets_->push_back(static_cast<int64_t>(value));
    return true;
  }
  return other("a number");
}

bool HeaderReader::string(string_t& value) {
  if (place_ == Place::kMetadata) {
    const bool is_new = header_.metadata.emplace(metadata_key_, std::move(value)).second;
    DS_CHECK_AS(CheckpointError, is_new, "safetensors file {}: the header is damaged: __metadata__.{} occurs twice",
                file_, printable(metadata_key_));
    return true;
  }
  if (place_ != Place::kEntry || field_ != Field::kDType) return other("a text");
  dtype_ = safetensors_dtype(value);
  DS_CHECK_AS(CheckpointError, dtype_.has_value(), "{}: dtype \"{}\" is not supported", where(), printable(value));
  return true;
}

bool HeaderReader::start_object(std::size_t) {
  if (place_ == Place::kStart) {
    place_ = Place::kHeader;
  } else if (place_ == Place::kHeader && is_metadata()) {
    place_ = Place::kMetadata;
  } else if (place_ == Place::kHeader) {
    begin_entry();
  } else {
    other("an object");
    open_unknown();
  }
  return true;
}

bool HeaderReader::end_object() {
  if (place_ == Place::kUnknown) {
    close_unknown();
  } else if (place_ == Place::kEntry) {
    end_entry();
  } else {
    place_ = Place::kHeader;  // of the metadata, or the header's own end
  }
  return true;
}

bool HeaderReader::start_array(std::size_t) {
  if (place_ == Place::kEntry && field_ == Field::kShape) {
    shape_.emplace();
    place_ = Place::kShape;
  } else if (place_ == Place::kEntry && field_ == Field::kOffsets) {
    offsets_.emplace();
    place_ = Place::kOffsets;
  } else {
    other("a list");
    open_unknown();
  }
  return true;
}

bool HeaderReader::end_array() {
  if (place_ == Place::kUnknown) {
    close_unknown();
  } else {
    place_ = Place::kEntry;
  }
  return true;
}

bool HeaderReader::key(string_t& value) {
  if (place_ == Place::kHeader) {
    name_ = std::move(value);
    DS_CHECK_AS(CheckpointError, !is_metadata() || !metadata_seen_,
                "safetensors file {}: the header is damaged: __metadata__ occurs twice", file_);
    metadata_seen_ = metadata_seen_ || is_metadata();
  } else if (place_ == Place::kMetadata) {
    metadata_key_ = std::move(value);
  } else if (place_ == Place::kEntry) {
    field_ = value == "dtype"          ? Field::kDType
             : value == "shape"        ? Field::kShape
             : value == "data_offsets" ? Field::kOffsets
                                       : Field::kUnknown;
    const bool twice = (field_ == Field::kDType && dtype_) || (field_ == Field::kShape && shape_) ||
                       (field_ == Field::kOffsets && offsets_);
    DS_CHECK_AS(CheckpointError, !twice, "{}: the header is damaged: {} occurs twice", where(), value);
  }
  return true;
}

bool HeaderReader::parse_error(std::size_t position, const std::string&, const nlohmann::json::exception&) {
  ds_throw<CheckpointError>("safetensors file {}: the header is damaged: no JSON at its byte {}", file_, position);
}

void HeaderReader::begin_entry() {
  place_ = Place::kEntry;
  dtype_.reset();
  shape_.reset();
  offsets_.reset();
}

void HeaderReader::end_entry() {
  DS_CHECK_AS(CheckpointError, dtype_ && shape_ && offsets_, "{}: needs dtype, shape and data_offsets", where());
  std::optional<int64_t> bytes = 1;
  for (const int64_t size : *shape_) bytes = bytes ? checked_product(*bytes, size) : std::nullopt;
  if (bytes) bytes = checked_product(*bytes, size_of(*dtype_));
  DS_CHECK_AS(CheckpointError, bytes.has_value(), "{}: impossible shape: its size does not fit into 64 bits", where());
  DS_CHECK_AS(CheckpointError, offsets_->size() == 2, "{}: data_offsets is not a pair", where());
  const int64_t begin = offsets_->front(), end = offsets_->back();
  DS_CHECK_AS(CheckpointError, begin <= end, "{}: bytes {} to {} are not inside the file: the end is before the begin",
              where(), begin, end);
  DS_CHECK_AS(CheckpointError, end - begin == *bytes, "{}: has {} bytes where its shape and dtype need {}", where(),
              end - begin, *bytes);
  header_.entries.push_back({name_, *dtype_, std::move(*shape_), begin, end});
  place_ = Place::kHeader;
}

void check_names(const std::vector<SafetensorsEntry>& entries, const std::string& file) {
  std::vector<std::string_view> names;
  names.reserve(entries.size());
  for (const auto& entry : entries) names.emplace_back(entry.name);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  DS_CHECK_AS(CheckpointError, twice == names.end(),
              "safetensors file {}: the header is damaged: tensor {} occurs twice", file, printable(*twice));
}

}  // namespace

std::optional<DType> safetensors_dtype(std::string_view name) {
  for (const auto& known : kDTypeNames) {
    if (known.name == name) return known.dtype;
  }
  return std::nullopt;
}

std::string_view safetensors_name(DType dtype) {
  return std::find_if(kDTypeNames.begin(), kDTypeNames.end(), [&](const DTypeName& n) { return n.dtype == dtype; })
      ->name;
}

SafetensorsHeader parse_safetensors_header(std::string_view text, int64_t data_bytes, const std::string& file) {
  // The library skips a byte order mark and takes a byte that is 0 for the end; the format has neither.
  DS_CHECK_AS(CheckpointError, !text.starts_with("\xEF\xBB\xBF") && text.find('\0') == std::string_view::npos,
              "safetensors file {}: the header is damaged: it has bytes that JSON does not have", file);
  HeaderReader reader(data_bytes, file);
  (void)nlohmann::json::sax_parse(text, &reader);
  SafetensorsHeader header = reader.take();
  check_names(header.entries, file);
  std::stable_sort(header.entries.begin(), header.entries.end(),
                   [](const auto& a, const auto& b) { return std::pair(a.begin, a.end) < std::pair(b.begin, b.end); });
  int64_t position = 0;
  for (const auto& entry : header.entries) {
    DS_CHECK_AS(
        CheckpointError, entry.begin == position,
        "safetensors file {}: the bytes of tensor {} begin at {} instead of {}: tensors overlap or leave a hole", file,
        printable(entry.name), entry.begin, position);
    position = entry.end;
  }
  DS_CHECK_AS(CheckpointError, position == data_bytes,
              "safetensors file {}: {} bytes of data, but its tensors have {} (is it cut off?)", file, data_bytes,
              position);
  return header;
}

}  // namespace deepscale
