// Finds Python packages and their versions by reading folders, because starting an interpreter costs 50 ms and
// importing torch seconds. Layouts that this file does not understand give nothing; the caller then asks the
// interpreter. Search order is Python's: PYTHONPATH, the user's site-packages, the environment's; *.pth files add
// folders.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace deepscale {

struct PythonInstallation {
  bool operator==(const PythonInstallation&) const = default;
  std::string version;  ///< "3.11.7", or "3.11" where the files do not say more
  std::vector<std::filesystem::path> search_path;
  bool has_import_hooks = false;  ///< a *.pth file runs code, which may make packages importable (editable installs)
};

/// What belongs to an interpreter: a virtual environment (pyvenv.cfg), or a prefix with lib/pythonX.Y.
/// `variables`: the environment (PYTHONPATH, HOME; with PYTHONHOME nothing is understood).
std::optional<PythonInstallation> read_python_installation(const std::filesystem::path& executable,
                                                           const std::map<std::string, std::string>& variables);

/// The folder of a package: the first one in the search path with an __init__.py.
std::optional<std::filesystem::path> find_python_package(const PythonInstallation& python, const std::string& name);

/// The version in the name of a *.dist-info folder beside the package.
std::optional<std::string> distribution_version(const std::filesystem::path& package);

/// What torch/version.py says. Empty: not there, or None.
struct TorchFacts {
  std::string version;
  std::string cuda;
  std::string hip;
};
TorchFacts read_torch_version(const std::filesystem::path& torch);

}  // namespace deepscale
