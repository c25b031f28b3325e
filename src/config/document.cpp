#include "config/document.h"

#include <fmt/format.h>

#include <cctype>
#include <set>

#include "config/resolve.h"
#include "config/sections.h"

namespace deepscale::config {
namespace {

constexpr std::string_view kHead = R"(# Configuration

<!-- Generated from the option table by deepscale_config_doc; do not edit. -->

The configuration is one JSON object: a file (`--deepspeed_config ds_config.json`, `initialize(config="ds_config.json")`),
a dictionary, JSON text, or JSON text encoded as base64url. The C++ API reads the same file (`deepscale/config.h`).

## Reading rules

- Comments (`//`, `#`, `/* */`) and trailing commas are allowed. The unquoted strings of HJSON and NaN are not.
- A key that occurs twice in one object is an error that names it.
- An unknown key is an error in the sections marked *strict* and a warning, with the nearest known key, elsewhere.
  At top level a key with dots is not split; it is ignored with a warning.
- `"auto"` leaves the default. Where a program should have replaced it (top level, `optimizer.params`, `scheduler.params`, and keys
  `enabled`, `stage` and `device` of sections) there is a warning. While a model is built under `zero.Init`, batch sizes may be missing or `"auto"`.
- `null` means "not set". It is accepted for every key at top level, and below where the type says so.
- Integers may be written as floats (`5e8`). Numbers and booleans written as text (`"2"`, `"true"`) are read with a warning.
- `Infinity` means "never" for `steps_per_print` and "unlimited" for stage-3 limits, which are printed as
  9223372036854775807.
- Deprecated names are read with a warning. The same setting under two names with two values is an error.
- Problems are reported together, each with its JSON path: keys, types and ranges first, then what does not fit together.
- The configuration in force (every key of every section) can be printed: `Config::to_json`, in Python
  `deepspeed.DeepSpeedConfig(path).print("configuration")`.

## Batch sizes

`train_batch_size` = `train_micro_batch_size_per_gpu` x `gradient_accumulation_steps` x data-parallel ranks. What is missing
is filled in: with `train_batch_size` alone, or `train_micro_batch_size_per_gpu` alone, `gradient_accumulation_steps` is 1. At
least one of the two batch sizes must be given, each of the three must be greater than 0, and the product must be exact.
)";

// Text inside a Markdown table cell.
std::string cell(std::string text) {
  for (size_t at = text.find('|'); at != std::string::npos; at = text.find('|', at + 2)) text.insert(at, "\\");
  return text;
}

std::string code_list(const std::vector<std::string_view>& names) {
  std::string text;
  for (const auto name : names) text += fmt::format("{}`{}`", text.empty() ? "" : ", ", name);
  return text;
}

// Renderers make the anchor of a heading without its dots and in lower case.
std::string link(const std::string& path) {
  std::string anchor;
  for (const char c : path) {
    if (c != '.') anchor += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  return fmt::format("[`{}`](#{})", path, anchor);
}

std::string default_text(const Option& option, const Json& value) {
  if (!option.rule.default_note.empty()) return std::string(option.rule.default_note);
  if (option.nested != nullptr && !value.is_null() && !value.is_array()) return "see below";
  std::string text = json_to_text(value);
  if (text == "9223372036854775807") return "unlimited";
  return fmt::format("`{}`", text);
}

struct Page {
  std::string text;
  std::set<const Section*> written;

  // Rows of one table, then the tables of nested sections that are not on the page yet.
  void write(const Section& section, const Json& defaults, const std::string& path, const std::string& note) {
    written.insert(&section);
    text += fmt::format("\n## {}\n\n{}{}\n\n", path.empty() ? "Top level" : path, section.doc, note);
    text += "| Key | Type | Default | Meaning |\n|---|---|---|---|\n";
    for (const Option& option : section.options) write_row(option, defaults, path);
    for (const Retired& retired : section.retired) {
      text += fmt::format("| `{}` | | | Deprecated; {}. |\n", retired.name, cell(std::string(retired.replacement)));
    }
    for (const Option& option : section.options) write_nested(option, path);
  }

 private:
  static std::string nested_path(const Option& option, const std::string& path) {
    return join_path(path, option.name) + (option.nested_in_map ? ".NAME" : "");
  }

  void write_row(const Option& option, const Json& defaults, const std::string& path) {
    std::string meaning(option.doc);
    if (!option.rule.aliases.empty()) meaning += fmt::format(" Also: {}.", code_list(option.rule.aliases));
    if (!option.rule.old_names.empty())
      meaning += fmt::format(" Deprecated name: {}.", code_list(option.rule.old_names));
    if (option.nested != nullptr) meaning += fmt::format(" See {}.", link(nested_path(option, path)));
    text += fmt::format("| `{}` | {} | {} | {} |\n", option.name, cell(option.type),
                        cell(default_text(option, defaults[std::string(option.name)])), cell(meaning));
  }

  void write_nested(const Option& option, const std::string& path) {
    if (option.nested == nullptr) return;
    const std::string where = nested_path(option, path);
    if (written.count(option.nested) > 0) {
      text +=
          fmt::format("\n## {}\n\n{} The keys are those of the section of the same kind above.\n", where, option.doc);
      return;
    }
    const Json inner = option.nested->defaults();
    write(*option.nested, inner, where, option.nested->unknown == UnknownKeys::kError ? " *Strict.*" : "");
  }
};

}  // namespace

std::string documentation() {
  Page page;
  page.text = kHead;
  page.text +=
      "\n## Not built yet\n\nThese are parsed and validated, and refused by name when they are switched on:\n\n";
  for (const NotBuilt& row : not_built()) page.text += fmt::format("- `{}`\n", row.path);
  const Section& root = table_of(static_cast<const Options*>(nullptr));
  page.write(root, root.defaults(), "", "");
  return page.text;
}

}  // namespace deepscale::config
