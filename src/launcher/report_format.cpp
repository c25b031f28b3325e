// The report as text in DeepSpeed's customary columns, and as JSON.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <nlohmann/json.hpp>

#include "launcher/report.h"

namespace deepscale {
namespace {

constexpr size_t kOperatorWidth = 23;
constexpr size_t kEnvironmentWidth = 33;

std::string dotted(const std::string& name, size_t width) {
  return name + " " + (name.size() + 1 < width ? std::string(width - name.size() - 1, '.') : "");
}

struct Palette {
  const char* good;
  const char* warning;
  const char* bad;
  const char* end;
};

std::string operator_line(const OperatorRow& row, const ReportView& view, const Palette& color) {
  const char* installed = row.built ? "[YES]" : "[NO]";
  const char* usable = row.usable ? "[OKAY]" : "[NO]";
  return fmt::format("{} {}{}{} {} {}{}{}{}\n", dotted(row.name, kOperatorWidth),
                     row.built ? color.good : color.warning, installed, color.end, row.built ? "......" : ".......",
                     row.usable ? color.good : color.warning, usable, color.end,
                     row.why_not.empty() || !view.warnings ? "" : "  " + row.why_not);
}

std::string text_of(const ReportLine& line) {
  if (!line.text.empty()) return line.text;
  struct {
    std::string operator()(std::monostate) const { return "none"; }
    std::string operator()(const std::string& value) const { return value; }
    std::string operator()(int64_t value) const { return std::to_string(value); }
    std::string operator()(bool value) const { return value ? "yes" : "no"; }
    std::string operator()(const std::vector<std::string>& value) const {
      return value.empty() ? "none" : fmt::format("{}", fmt::join(value, " "));
    }
  } as_text;
  return std::visit(as_text, line.value);
}

nlohmann::ordered_json json_of(const ReportLine::Value& value) {
  return std::visit(
      [](const auto& held) -> nlohmann::ordered_json {
        if constexpr (std::is_same_v<std::decay_t<decltype(held)>, std::monostate>) {
          return nullptr;
        } else {
          return held;
        }
      },
      value);
}

}  // namespace

std::string format_report(const Report& report, const ReportView& view) {
  const Palette color = view.colors ? Palette{"\033[92m", "\033[93m", "\033[91m", "\033[0m"} : Palette{"", "", "", ""};
  const std::string rule = std::string(50, '-') + "\n";
  std::string text;
  if (view.operators) {
    text += rule + "DeepSpeed C++/CUDA extension op report\n" + rule;
    text +=
        "NOTE: Operators are part of the installed package; nothing is compiled\n      at run time and no compiler is "
        "needed.\n";
    text += rule + "op name ................ installed .. compatible\n" + rule;
    for (const OperatorRow& row : report.operators) text += operator_line(row, view, color);
    text += rule;
  }
  text += "DeepSpeed general environment info:\n";
  for (const ReportLine& line : report.environment) {
    if (line.name.empty()) continue;
    text += fmt::format("{} {}\n", dotted(line.name, kEnvironmentWidth), text_of(line));
    if (view.warnings && !line.warning.empty())
      text += fmt::format("{} [WARNING] {}{}\n", color.bad, line.warning, color.end);
  }
  return text;
}

std::string format_report_json(const Report& report, const ReportView& view) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  if (view.operators) {
    json["operators"] = nlohmann::ordered_json::array();
    for (const OperatorRow& row : report.operators) {
      json["operators"].push_back(
          {{"name", row.name}, {"installed", row.built}, {"compatible", row.usable}, {"why_not", row.why_not}});
    }
  }
  nlohmann::ordered_json warnings = nlohmann::ordered_json::array();
  for (const ReportLine& line : report.environment) {
    const size_t dot = line.key.find('.');
    json[line.key.substr(0, dot)][line.key.substr(dot + 1)] = json_of(line.value);
    if (!line.warning.empty()) warnings.push_back(fmt::format("{}: {}", line.key, line.warning));
  }
  if (view.warnings) json["warnings"] = std::move(warnings);
  // Paths need not be UTF-8.
  return json.dump(2, ' ', /*ensure_ascii=*/false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace deepscale
