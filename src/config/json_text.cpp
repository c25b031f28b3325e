#include "config/json_text.h"

#include <fmt/format.h>

#include <cctype>
#include <cmath>
#include <limits>
#include <set>
#include <vector>

#include "base/error.h"
#include "base/text.h"

namespace deepscale::config {
namespace {

constexpr size_t kMaxDepth = 64;
constexpr size_t kMaxDuplicatesShown = 20;
constexpr size_t kMaxMessage = 300;

// JSON has no spelling for infinity. While the library reads or writes the text, a one-character string stands for it:
// written with an escape it is exactly as long as "Infinity", so that error positions stay true.
constexpr std::string_view kInfinityText = "Infinity";
constexpr std::string_view kPlusToken = "\"\\u0001\"";
constexpr std::string_view kMinusToken = "\"\\u0002\"";
constexpr std::string_view kPlusString = "\x01";
constexpr std::string_view kMinusString = "\x02";

std::string line_and_column(std::string_view text, size_t position) {
  size_t line = 1;
  size_t column = 1;
  for (size_t i = 0; i < position && i < text.size(); ++i) {
    column = text[i] == '\n' ? 1 : column + 1;
    line += text[i] == '\n' ? 1 : 0;
  }
  return fmt::format("line {}, column {}", line, column);
}

// Turns the accepted dialect into JSON in place, byte for byte.
class Normalizer {
 public:
  explicit Normalizer(std::string_view text) : text_(text) {}

  std::string run() {
    while (at_ < text_.size()) {
      const char c = text_[at_];
      if (c == '"') {
        skip_string();
      } else if (is_comment_start(at_)) {
        at_ = blank_comment(at_);
      } else if (c == ',') {
        drop_trailing_comma();
      } else if (std::isalpha(static_cast<unsigned char>(c)) != 0) {
        word();
      } else {
        ++at_;
      }
    }
    return std::move(text_);
  }

 private:
  bool is_comment_start(size_t i) const {
    return text_[i] == '#' || (text_[i] == '/' && i + 1 < text_.size() && (text_[i + 1] == '/' || text_[i + 1] == '*'));
  }

  void skip_string() {
    for (++at_; at_ < text_.size() && text_[at_] != '"'; ++at_) {
      if (text_[at_] == '\\') ++at_;
    }
    ++at_;
  }

  // Overwrites the comment that begins at i with blanks; returns the first position behind it.
  size_t blank_comment(size_t i) {
    const bool block = text_[i] == '/' && text_[i + 1] == '*';
    size_t end = block ? text_.find("*/", i + 2) : text_.find('\n', i);
    if (block && end == std::string::npos) {
      ds_throw<ConfigError>("configuration: {}: comment /* without */; close the comment", line_and_column(text_, i));
    }
    end = end == std::string::npos ? text_.size() : end + (block ? 2 : 0);
    for (; i < end; ++i) {
      if (text_[i] != '\n') text_[i] = ' ';
    }
    return end;
  }

  void drop_trailing_comma() {
    size_t next = at_ + 1;
    while (next < text_.size()) {
      if (is_comment_start(next)) {
        next = blank_comment(next);
      } else if (std::isspace(static_cast<unsigned char>(text_[next])) != 0) {
        ++next;
      } else {
        break;
      }
    }
    if (next < text_.size() && (text_[next] == '}' || text_[next] == ']')) text_[at_] = ' ';
    at_ = next;
  }

  void word() {
    size_t end = at_;
    while (end < text_.size() && (std::isalnum(static_cast<unsigned char>(text_[end])) != 0 || text_[end] == '_'))
      ++end;
    const std::string_view found = std::string_view(text_).substr(at_, end - at_);
    if (found == kInfinityText) {
      const bool minus = at_ > 0 && text_[at_ - 1] == '-';
      if (minus) text_[at_ - 1] = ' ';
      text_.replace(at_, kInfinityText.size(), minus ? kMinusToken : kPlusToken);
    } else if (found == "NaN") {
      ds_throw<ConfigError>("configuration: {}: NaN is not a usable number; write a number or remove the key",
                            line_and_column(text_, at_));
    } else if (found == "None" || found == "True" || found == "False") {
      ds_throw<ConfigError>("configuration: {}: found {}, which is Python; JSON spells it {}",
                            line_and_column(text_, at_), found,
                            found == "None" ? "null" : (found == "True" ? "true" : "false"));
    }
    at_ = end;
  }

  std::string text_;
  size_t at_ = 0;
};

// Builds the value and notes every key that occurs twice in one object.
class Builder : public nlohmann::json_sax<Json> {
 public:
  bool null() override { return add(nullptr); }
  bool boolean(bool value) override { return add(value); }
  bool number_integer(number_integer_t value) override { return add(value); }
  bool number_unsigned(number_unsigned_t value) override { return add(value); }
  bool number_float(number_float_t value, const string_t&) override { return add(value); }
  bool binary(binary_t&) override { return false; }
  bool string(string_t& value) override {
    if (value == kPlusString) return add(std::numeric_limits<double>::infinity());
    if (value == kMinusString) return add(-std::numeric_limits<double>::infinity());
    return add(std::move(value));
  }
  bool start_object(std::size_t) override { return open(Json::object()); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool key(string_t& value) override {
    Level& level = levels_.back();
    if (!level.seen.insert(value).second && ++duplicate_count_ <= kMaxDuplicatesShown) {
      duplicates_.push_back(path() + printable(value));
    }
    level.key = std::move(value);
    return true;
  }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }
  bool parse_error(std::size_t, const std::string&, const Json::exception& exception) override {
    const std::string what =
        exception.what();  // "[json.exception.parse_error.101] parse error at line 1, column 2: ..."
    const size_t bracket = what.find("] ");
    error_ = bracket == std::string::npos ? what : what.substr(bracket + 2);
    return false;
  }

  const std::string& error() const { return error_; }
  const std::vector<std::string>& duplicates() const { return duplicates_; }
  size_t duplicate_count() const { return duplicate_count_; }
  Json take() { return std::move(result_); }

 private:
  struct Level {
    Json value;
    std::string key;
    std::set<std::string> seen;  // not hashed: the keys may have been chosen so that their hashes are equal
  };

  std::string path() const {
    std::string text;
    for (size_t i = 0; i + 1 < levels_.size(); ++i) {
      if (!levels_[i].key.empty()) text += printable(levels_[i].key) + ".";
    }
    return text;
  }

  bool add(Json value) {
    if (levels_.empty()) {
      result_ = std::move(value);
    } else if (levels_.back().value.is_array()) {
      levels_.back().value.push_back(std::move(value));
    } else {
      levels_.back().value.get_ref<Json::object_t&>().push_back({levels_.back().key, std::move(value)});
    }
    return true;
  }

  bool open(Json value) {
    if (levels_.size() >= kMaxDepth) {
      error_ = fmt::format("nested deeper than {} levels", kMaxDepth);
      return false;
    }
    levels_.push_back({std::move(value), {}, {}});
    return true;
  }

  bool close() {
    Json value = std::move(levels_.back().value);
    levels_.pop_back();
    return add(std::move(value));
  }

  Json result_;
  std::vector<Level> levels_;
  std::vector<std::string> duplicates_;
  size_t duplicate_count_ = 0;
  std::string error_;
};

Json with_infinity_tokens(const Json& value) {
  if (value.is_number_float() && std::isinf(value.get<double>())) {
    return std::string(value.get<double>() > 0 ? kPlusString : kMinusString);
  }
  if (!value.is_structured()) return value;
  Json copy = value;
  for (auto& item : copy) item = with_infinity_tokens(item);
  return copy;
}

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size())) {
    text.replace(at, from.size(), to);
  }
}

int base64_digit(char c) {
  if (c >= 'A' && c <= 'Z') return c - 'A';
  if (c >= 'a' && c <= 'z') return c - 'a' + 26;
  if (c >= '0' && c <= '9') return c - '0' + 52;
  if (c == '-' || c == '+') return 62;
  if (c == '_' || c == '/') return 63;
  return -1;
}

}  // namespace

Json parse_json_text(std::string_view text) {
  // The library takes this byte for the end of the text.
  const size_t zero = text.find('\0');
  DS_CHECK_AS(ConfigError, zero == std::string_view::npos, "configuration is not JSON: {}: a byte that is 0",
              line_and_column(text, zero));
  const std::string json = Normalizer(text).run();
  Builder builder;
  const bool complete = Json::sax_parse(json, &builder);
  DS_CHECK_AS(ConfigError, complete, "configuration is not JSON: {}", printable(builder.error(), kMaxMessage));
  DS_CHECK_AS(ConfigError, builder.duplicates().empty(),
              "configuration: duplicate keys: {}{}; a key may occur once in an object, remove all but one",
              fmt::join(builder.duplicates(), ", "), builder.duplicate_count() > kMaxDuplicatesShown ? ", ..." : "");
  return builder.take();
}

std::string json_to_text(const Json& value, int indent) {
  std::string text = with_infinity_tokens(value).dump(indent);
  replace_all(text, kPlusToken, kInfinityText);
  replace_all(text, kMinusToken, "-Infinity");
  return text;
}

std::optional<std::string> decode_base64url(std::string_view text) {
  while (!text.empty() && text.back() == '=') text.remove_suffix(1);
  if (text.empty() || text.size() % 4 == 1) return std::nullopt;
  std::string bytes;
  uint32_t bits = 0;
  int count = 0;
  for (const char c : text) {
    const int digit = base64_digit(c);
    if (digit < 0) return std::nullopt;
    bits = (bits << 6) | static_cast<uint32_t>(digit);
    count += 6;
    if (count >= 8) {
      count -= 8;
      bytes.push_back(static_cast<char>((bits >> count) & 0xff));
    }
  }
  return bytes;
}

}  // namespace deepscale::config
