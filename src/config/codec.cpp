#include "config/codec.h"

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace deepscale::config {
namespace {

std::string lower(std::string_view text) {
  std::string result(text);
  std::transform(result.begin(), result.end(), result.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return result;
}

// Some tools pass every value as text: "2", "5e8", "true". Usable, but worth a word.
std::optional<double> number_in_text(const Json& value) {
  if (!value.is_string()) return std::nullopt;
  const auto& text = value.get_ref<const std::string&>();
  if (text.empty() || text.find_first_not_of("0123456789+-.eE") != std::string::npos) return std::nullopt;
  const Json parsed = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  return parsed.is_number() ? std::optional<double>(parsed.get<double>()) : std::nullopt;
}

void warn_text(const Json& value, std::string_view kind, const std::string& path, Problems& problems) {
  problems.warn(path, fmt::format("{} is written as text ({}); write it without quotes", kind, show(value)));
}

bool in_range(double value, const Rule& rule) {
  if (rule.minimum && (rule.exclusive ? value <= *rule.minimum : value < *rule.minimum)) return false;
  return !(rule.maximum && (rule.exclusive ? value >= *rule.maximum : value > *rule.maximum));
}

void wrong_type(std::string_view expected, const Json& value, const std::string& path, Problems& problems) {
  problems.error(path, fmt::format("must be {}, found {}", expected, show(value)));
}

void wrong_range(std::string_view kind, const Rule& rule, const Json& value, const std::string& path,
                 Problems& problems) {
  problems.error(path, fmt::format("must be {} {}{}, found {}", kind == "integer" ? "an" : "a", kind, range_text(rule),
                                   show(value)));
}

// 2^63 is the first double that int64_t cannot hold.
constexpr double kIntegerEnd = 9223372036854775808.0;

}  // namespace

std::optional<bool> read_boolean(const Json& value, const std::string& path, Problems& problems) {
  if (value.is_boolean()) return value.get<bool>();
  if (value.is_number() && (value == 0 || value == 1)) return value == 1;
  if (value.is_string()) {
    const std::string text = lower(value.get_ref<const std::string&>());
    if (text == "true" || text == "false") {
      warn_text(value, "a boolean", path, problems);
      return text == "true";
    }
  }
  wrong_type("true or false", value, path, problems);
  return std::nullopt;
}

std::optional<int64_t> read_integer(const Json& value, const Rule& rule, const std::string& path, Problems& problems) {
  std::optional<double> number;
  if (value.is_number()) number = value.get<double>();
  if (!number) {
    number = number_in_text(value);
    if (number) warn_text(value, "an integer", path, problems);
  }
  if (!number) {
    wrong_type("an integer" + range_text(rule), value, path, problems);
    return std::nullopt;
  }
  if (rule.infinity_allowed && *number >= kIntegerEnd) return kUnlimited;
  if (std::isfinite(*number) && *number != std::floor(*number)) {
    wrong_type("a whole number" + range_text(rule), value, path, problems);
    return std::nullopt;
  }
  if (!in_range(*number, rule) || !(std::fabs(*number) < kIntegerEnd || value.is_number_integer())) {
    wrong_range("integer", rule, value, path, problems);
    return std::nullopt;
  }
  if (value.is_number_unsigned() && value.get<uint64_t>() > static_cast<uint64_t>(kUnlimited)) {
    wrong_range("integer", rule, value, path, problems);
    return std::nullopt;
  }
  return value.is_number_integer() ? value.get<int64_t>() : static_cast<int64_t>(*number);
}

std::optional<double> read_number(const Json& value, const Rule& rule, const std::string& path, Problems& problems) {
  std::optional<double> number;
  if (value.is_number()) number = value.get<double>();
  if (value.is_boolean() && rule.boolean_is_number) number = value.get<bool>() ? 1.0 : 0.0;
  if (!number) {
    number = number_in_text(value);
    if (number) warn_text(value, "a number", path, problems);
  }
  if (!number) {
    wrong_type("a number" + range_text(rule), value, path, problems);
    return std::nullopt;
  }
  if (!std::isfinite(*number)) {
    wrong_type("a finite number" + range_text(rule), value, path, problems);
    return std::nullopt;
  }
  if (!in_range(*number, rule)) {
    wrong_range("number", rule, value, path, problems);
    return std::nullopt;
  }
  return number;
}

std::optional<std::string> read_text(const Json& value, const Rule& rule, const std::string& path, Problems& problems) {
  if (!value.is_string()) {
    wrong_type(rule.choices.empty() ? "a string" : choices_text(rule.choices), value, path, problems);
    return std::nullopt;
  }
  const auto& text = value.get_ref<const std::string&>();
  if (rule.choices.empty()) return text;
  for (const std::string_view choice : rule.choices) {
    if (text == choice || (rule.fold_case && lower(text) == lower(choice))) return std::string(choice);
  }
  wrong_type(choices_text(rule.choices), value, path, problems);
  return std::nullopt;
}

std::optional<size_t> read_choice(const Json& value, const std::vector<std::string_view>& spellings,
                                  const std::vector<std::string_view>& shown, const std::string& path,
                                  Problems& problems) {
  if (value.is_string()) {
    const std::string text = lower(value.get_ref<const std::string&>());
    for (size_t i = 0; i < spellings.size(); ++i) {
      if (lower(spellings[i]) == text) return i;
    }
  }
  wrong_type(choices_text(shown), value, path, problems);
  return std::nullopt;
}

std::string range_text(const Rule& rule) {
  if (rule.minimum && rule.maximum) {
    return rule.exclusive ? fmt::format(" greater than {:g} and less than {:g}", *rule.minimum, *rule.maximum)
                          : fmt::format(" from {:g} to {:g}", *rule.minimum, *rule.maximum);
  }
  if (rule.minimum) return fmt::format(" {} {:g}", rule.exclusive ? "greater than" : "of at least", *rule.minimum);
  return "";
}

std::string choices_text(const std::vector<std::string_view>& choices) {
  std::string text;
  for (size_t i = 0; i < choices.size(); ++i) {
    if (i > 0) text += i + 1 == choices.size() ? " or " : ", ";
    text += fmt::format("\"{}\"", choices[i]);
  }
  return text;
}

}  // namespace deepscale::config
