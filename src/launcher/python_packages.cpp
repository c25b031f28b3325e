#include "launcher/python_packages.h"

#include <algorithm>
#include <cctype>
#include <fstream>

#include "base/text.h"
#include "launcher/text.h"

namespace deepscale {
namespace fs = std::filesystem;
namespace {

/// "key = value" lines.
std::map<std::string, std::string> read_settings(const fs::path& file) {
  std::map<std::string, std::string> settings;
  std::ifstream text(file);
  for (std::string line; std::getline(text, line);) {
    const std::string_view view = line;
    const size_t equals = view.find('=');
    if (equals == std::string_view::npos) continue;
    settings[std::string(trimmed(view.substr(0, equals)))] = trimmed(view.substr(equals + 1));
  }
  return settings;
}

std::string minor_of(const std::string& version) {
  const size_t first = version.find('.');
  const size_t second = first == std::string::npos ? first : version.find('.', first + 1);
  return version.substr(0, second);
}

bool is_folder(const fs::path& path) {
  std::error_code ignored;
  return fs::is_directory(path, ignored);
}

std::vector<fs::path> sorted_entries(const fs::path& folder) {
  std::vector<fs::path> entries;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) entries.push_back(entry.path());
  std::sort(entries.begin(), entries.end());
  return entries;
}

/// A folder and those that its *.pth files name.
void add_site(const fs::path& folder, PythonInstallation& python) {
  if (!is_folder(folder)) return;
  python.search_path.push_back(folder);
  for (const fs::path& file : sorted_entries(folder)) {
    if (file.extension() != ".pth") continue;
    std::ifstream text(file);
    for (std::string line; std::getline(text, line);) {
      line = std::string(trimmed(line));
      if (line.empty() || line.starts_with('#')) continue;
      if (line.starts_with("import ") || line.starts_with("import	")) {
        // setuptools' own file is everywhere and adds no package.
        python.has_import_hooks = python.has_import_hooks || file.filename() != "distutils-precedence.pth";
        continue;
      }
      const fs::path named = folder / line;  // an absolute line replaces the folder
      if (is_folder(named)) python.search_path.push_back(named);
    }
  }
}

/// Site folders of a prefix; Debian has its own names.
void add_prefix(const fs::path& prefix, const std::string& minor, PythonInstallation& python) {
  if (prefix == "/usr") add_site("/usr/local/lib/python" + minor + "/dist-packages", python);
  add_site(prefix / ("lib/python" + minor) / "site-packages", python);
  add_site(prefix / "Lib" / "site-packages", python);  // Windows
  if (prefix == "/usr") add_site("/usr/lib/python3/dist-packages", python);
}

/// X.Y of a real interpreter: from its name, or from the only lib/pythonX.Y of its prefix.
std::optional<std::string> minor_of_prefix(const fs::path& executable, const fs::path& prefix) {
  const std::string name = executable.filename().string();
  constexpr std::string_view kName = "python";
  if (name.starts_with(kName) && name.find('.') != std::string::npos && !name.ends_with(".exe")) {
    const std::string minor = name.substr(kName.size());
    if (is_folder(prefix / ("lib/python" + minor))) return minor;
  }
  std::vector<std::string> found;
  for (const fs::path& entry : sorted_entries(prefix / "lib")) {
    const std::string folder = entry.filename().string();
    if (folder.starts_with("python3.") && is_folder(entry / "encodings")) found.push_back(folder.substr(kName.size()));
  }
  return found.size() == 1 ? std::optional(found.front()) : std::nullopt;
}

std::string variable(const std::map<std::string, std::string>& variables, const char* name) {
  const auto found = variables.find(name);
  return found == variables.end() ? "" : found->second;
}

/// The text between quotes behind "name" and "=", as in `__version__ = '2.11.0'` or `cuda: Optional[str] = None`.
std::string quoted_value(const std::string& line, const std::string& name) {
  if (!line.starts_with(name) || line.size() == name.size()) return "";
  if (std::isalnum(static_cast<unsigned char>(line[name.size()])) != 0 || line[name.size()] == '_') return "";
  const size_t equals = line.find('=');
  const size_t begin = equals == std::string::npos ? equals : line.find_first_of("'\"", equals);
  const size_t end = begin == std::string::npos ? begin : line.find(line[begin], begin + 1);
  return end == std::string::npos ? "" : line.substr(begin + 1, end - begin - 1);
}

}  // namespace

std::optional<PythonInstallation> read_python_installation(const fs::path& executable,
                                                           const std::map<std::string, std::string>& variables) {
  if (!variable(variables, "PYTHONHOME").empty()) return std::nullopt;
  PythonInstallation python;
  for (const std::string& folder :
       split(variable(variables, "PYTHONPATH"), fs::path::preferred_separator == '/' ? ':' : ';')) {
    if (!folder.empty() && is_folder(folder)) python.search_path.emplace_back(folder);
  }
  const fs::path environment = executable.parent_path().parent_path();
  fs::path settings_file = environment / "pyvenv.cfg";
  std::error_code error;
  if (!fs::exists(settings_file, error)) settings_file = executable.parent_path() / "pyvenv.cfg";
  const bool is_environment = fs::exists(settings_file, error);
  const auto settings = is_environment ? read_settings(settings_file) : std::map<std::string, std::string>();
  const auto setting = [&](const char* key) { return variable(settings, key); };

  const fs::path real = fs::canonical(executable, error);
  if (error) return std::nullopt;
  const fs::path base = real.parent_path().parent_path();
  std::string version = setting("version").empty() ? setting("version_info") : setting("version");
  const auto minor = version.empty() ? minor_of_prefix(real, base) : minor_of(version);
  if (!minor) return std::nullopt;
  python.version = version.empty() ? *minor : version;

  if (!is_environment || setting("include-system-site-packages") == "true") {
    const std::string home = variable(variables, "HOME");
    if (!home.empty() && variable(variables, "PYTHONNOUSERSITE").empty() && !is_environment)
      add_site(fs::path(home) / ".local/lib" / ("python" + *minor) / "site-packages", python);
  }
  if (is_environment) add_prefix(settings_file.parent_path(), *minor, python);
  if (!is_environment || setting("include-system-site-packages") == "true") add_prefix(base, *minor, python);
  return python;
}

std::optional<fs::path> find_python_package(const PythonInstallation& python, const std::string& name) {
  std::error_code ignored;
  for (const fs::path& folder : python.search_path) {
    if (fs::exists(folder / name / "__init__.py", ignored)) return folder / name;
  }
  return std::nullopt;
}

std::optional<std::string> distribution_version(const fs::path& package) {
  const std::string start = package.filename().string() + "-";
  constexpr std::string_view kEnd = ".dist-info";
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(package.parent_path(), ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with(start) && name.ends_with(kEnd) && name.size() > start.size() + kEnd.size())
      return name.substr(start.size(), name.size() - start.size() - kEnd.size());
  }
  return std::nullopt;
}

TorchFacts read_torch_version(const fs::path& torch) {
  TorchFacts facts;
  std::ifstream text(torch / "version.py");
  for (std::string line; std::getline(text, line);) {
    for (const auto& [name, value] : {std::pair<const char*, std::string*>{"__version__", &facts.version},
                                      {"cuda", &facts.cuda},
                                      {"hip", &facts.hip}}) {
      const std::string found = quoted_value(line, name);
      if (!found.empty()) *value = found;
    }
  }
  return facts;
}

}  // namespace deepscale
