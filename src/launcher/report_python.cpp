// Python's part of the report: interpreter, torch, this package, and what they can communicate with. Reads files;
// starts Python only where files do not tell, and imports only on request.
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "launcher/python.h"
#include "launcher/python_packages.h"
#include "launcher/report.h"
#include "platform/machine.h"
#include "platform/process.h"

namespace deepscale {
namespace {

namespace fs = std::filesystem;
using Missing = ReportLine::Missing;

// What `torch>=2.11,<2.16` in pyproject.toml says.
constexpr int kOldestTorchMinor = 11;
constexpr int kNewestTorchMinor = 15;

/// Prints one JSON object. For installations that read_python_installation does not understand.
constexpr const char* kFilesProbe = R"(
import importlib.util as util, json, os, platform, sys
sys.path = [p for p in sys.path if p not in ("", os.getcwd())]
out = {"python": platform.python_version(), "executable": sys.executable}
for name in ("torch", "deepspeed"):
    spec = util.find_spec(name)
    out[name] = os.path.dirname(spec.origin) if spec and spec.origin else None
print(json.dumps(out))
)";

constexpr const char* kImportProbe = R"(
import json, os, sys
sys.path = [p for p in sys.path if p not in ("", os.getcwd())]
out = {}
def attempt(name, action):
    try:
        out[name] = action()
    except BaseException as error:
        out[name + "_problem"] = "%s: %s" % (type(error).__name__, error)
attempt("torch", lambda: __import__("torch").__version__)
attempt("deepspeed", lambda: __import__("deepspeed").__version__)
attempt("kernel_variant", lambda: __import__("deepspeed._C", fromlist=["_C"]).cpu_target_name())
attempt("gpus", lambda: __import__("torch").cuda.device_count())
for backend in ("gloo", "nccl", "mpi"):
    attempt(backend, lambda: bool(getattr(__import__("torch.distributed", fromlist=["x"]), "is_%s_available" % backend)()))
print(json.dumps(out))
)";

/// Where the packages are. Empty paths: not installed.
struct Installed {
  std::string python_version;
  std::string python_path;
  fs::path torch;
  fs::path own;
  std::string problem;
};

std::string text_of(const nlohmann::json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

/// The JSON object that the probe prints, or an object with "problem".
nlohmann::json ask_python(const std::string& python, const char* probe) {
  ProcessSpec spec;
  spec.arguments = {python, "-c", probe};
  for (const auto& [name, value] : environment_variables())
    spec.environment.push_back(fmt::format("{}={}", name, value));
  try {
    const ProcessOutput result = run_and_read(spec);
    const size_t last_line = result.output.rfind("\n{");
    const std::string text = last_line == std::string::npos ? result.output : result.output.substr(last_line + 1);
    nlohmann::json answer = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
    if (answer.is_object()) return answer;
    return {{"problem", fmt::format("{} gives no answer ({}); reinstall it, or set DEEPSCALE_PYTHON to another one",
                                    python, result.status.describe())}};
  } catch (const IoError& error) {
    return {{"problem", error.what()}};
  }
}

Installed find_installed(const std::string& python) {
  Installed installed;
  installed.python_path = python;
  if (const auto files = read_python_installation(python, environment_variables())) {
    installed.python_version = files->version;
    installed.torch = find_python_package(*files, "torch").value_or("");
    installed.own = find_python_package(*files, "deepspeed").value_or("");
    const bool all_found = !installed.torch.empty() && !installed.own.empty();
    if (all_found || !files->has_import_hooks) return installed;
  }
  // Import hooks (editable installations) and unusual layouts are the interpreter's business.
  const nlohmann::json answer = ask_python(python, kFilesProbe);
  installed.problem = text_of(answer, "problem");
  if (!installed.problem.empty()) return installed;
  installed.python_version = text_of(answer, "python");
  installed.python_path = text_of(answer, "executable");
  installed.torch = text_of(answer, "torch");
  installed.own = text_of(answer, "deepspeed");
  return installed;
}

ReportLine::Value value_or_missing(const std::string& text) {
  return text.empty() ? ReportLine::Value(Missing{}) : ReportLine::Value(text);
}

/// What is wrong with a torch of this version; empty when it is supported.
std::string torch_problem(const std::string& version) {
  int major = 0;
  int minor = 0;
  const char* const end = version.data() + version.size();
  const auto first = std::from_chars(version.data(), end, major);
  const bool two = first.ec == std::errc() && first.ptr != end && *first.ptr == '.';
  const bool known = two && std::from_chars(first.ptr + 1, end, minor).ec == std::errc();
  if (known && major == 2 && minor >= kOldestTorchMinor && minor <= kNewestTorchMinor) return "";
  return fmt::format("torch {} is not supported: this package works with 2.{} to 2.{}; pip install 'torch>=2.{},<2.{}'",
                     version, kOldestTorchMinor, kNewestTorchMinor, kOldestTorchMinor, kNewestTorchMinor + 1);
}

void add_torch_lines(const Installed& installed, std::vector<ReportLine>& lines) {
  const bool found = !installed.torch.empty();
  lines.push_back({"paths.torch", "torch install path", value_or_missing(installed.torch.string()),
                   found ? "" : "not installed",
                   found ? ""
                         : fmt::format("training needs it: pip install 'torch>=2.{},<2.{}'", kOldestTorchMinor,
                                       kNewestTorchMinor + 1)});
  if (!found) return;
  const TorchFacts torch = read_torch_version(installed.torch);
  lines.push_back({"versions.torch", "torch version", value_or_missing(torch.version),
                   torch.version.empty() ? "unknown" : "",
                   torch.version.empty() ? fmt::format("{} has no version; the installation is damaged: pip install "
                                                       "--force-reinstall torch",
                                                       (installed.torch / "version.py").string())
                                         : torch_problem(torch.version)});
  lines.push_back({"versions.torch_cuda", "torch cuda version", value_or_missing(torch.cuda), "", ""});
  lines.push_back({"versions.torch_hip", "torch hip version", value_or_missing(torch.hip), "", ""});
}

/// Native libraries of the package by their paths inside it, at most three folders deep.
std::vector<std::string> native_libraries(const fs::path& package) {
  constexpr int kDeepest = 2;
  std::vector<std::string> names;
  std::error_code ignored;
  // Installations for development link their folders.
  constexpr auto kOptions =
      fs::directory_options::follow_directory_symlink | fs::directory_options::skip_permission_denied;
  for (auto entry = fs::recursive_directory_iterator(package, kOptions, ignored);
       entry != fs::recursive_directory_iterator(); entry.increment(ignored)) {
    if (entry.depth() >= kDeepest) entry.disable_recursion_pending();
    const std::string extension = entry->path().extension().string();
    if (extension == ".so" || extension == ".pyd" || extension == ".dll")
      names.push_back(entry->path().lexically_relative(package).generic_string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

/// Torch versions ("2.11") that the installed package has a native part for.
std::vector<std::string> torch_parts(const fs::path& package) {
  std::vector<std::string> versions;
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(package / "_torch", ignored)) {
    const std::string name = entry.path().filename().string();
    if (name.starts_with("2.")) versions.push_back(name);
  }
  std::sort(versions.begin(), versions.end());
  return versions;
}

/// What is wrong when none of them belongs to the installed torch.
std::string part_problem(const std::vector<std::string>& parts, const std::string& torch) {
  if (parts.empty()) return "the package has no compiled part for any torch; reinstall the wheel";
  const std::string minor = torch.substr(0, torch.find('.', torch.find('.') + 1));
  const bool fits = torch.empty() || std::find(parts.begin(), parts.end(), minor) != parts.end();
  return fits ? "" : fmt::format("nothing is compiled for torch {}: install one of these versions", torch);
}

NativePart find_native_part(const Installed& installed) {
  if (installed.own.empty()) return {false, "the Python package is not installed"};
  const std::vector<std::string> parts = torch_parts(installed.own);
  const std::string torch = installed.torch.empty() ? "" : read_torch_version(installed.torch).version;
  std::string problem = part_problem(parts, torch);
  if (problem.empty() && torch.empty()) problem = "torch is not installed";
  return {!parts.empty(), problem};
}

void add_own_lines(const Installed& installed, std::vector<ReportLine>& lines) {
  const bool found = !installed.own.empty();
  lines.push_back({"paths.deepspeed", "deepspeed install path", value_or_missing(installed.own.string()),
                   found ? "" : "not installed",
                   found ? "" : "this program is here, the Python package is not: pip install deepspeed's wheel"});
  lines.push_back({"versions.deepspeed", "deepspeed info", std::string(DEEPSCALE_VERSION),
                   std::string(DEEPSCALE_VERSION) + " (DeepScale)", ""});
  if (found) {
    const std::string package = distribution_version(installed.own).value_or("");
    if (!package.empty() && package != DEEPSCALE_VERSION) {
      lines.back().warning = fmt::format(
          "the Python package is version {}, this program {}: two installations are mixed; reinstall, or run the "
          "ds_report of that environment",
          package, DEEPSCALE_VERSION);
    }
    const std::vector<std::string> libraries = native_libraries(installed.own);
    lines.push_back({"paths.native_libraries", "native libraries", libraries, "",
                     libraries.empty() ? "the package has no native part; reinstall the wheel" : ""});
  }
  if (!found) return;
  const std::vector<std::string> parts = torch_parts(installed.own);
  const std::string torch = installed.torch.empty() ? "" : read_torch_version(installed.torch).version;
  lines.push_back({"versions.wheel_torch", "deepspeed wheel compiled w.", parts,
                   fmt::format("torch {}", fmt::join(parts, ", ")), part_problem(parts, torch)});
}

bool has_file(const fs::path& folder, const char* part) {
  std::error_code ignored;
  for (const auto& entry : fs::directory_iterator(folder, ignored)) {
    if (entry.path().filename().string().find(part) != std::string::npos) return true;
  }
  return false;
}

/// By the files of torch's wheel. Only --import can tell about MPI, and about a torch that somebody built.
void add_backend_lines(const Installed& installed, std::vector<ReportLine>& lines) {
  const std::string problem = shared_memory_problem();
  lines.push_back({"communication.host", "host communicator", problem.empty(),
                   problem.empty() ? "shared memory" : "off, ranks use torch's backend: " + problem, ""});
  if (installed.torch.empty()) return;
  const fs::path libraries = installed.torch / "lib";
  const bool torch_cuda = has_file(libraries, "torch_cuda");
  const bool nccl_beside = has_file(installed.torch.parent_path() / "nvidia" / "nccl" / "lib", "nccl");
  const bool gloo = has_file(libraries, "torch_cpu");
  const bool nccl = torch_cuda && (nccl_beside || has_file(libraries, "nccl"));
  lines.push_back({"communication.gloo", "gloo", gloo, gloo ? "in torch" : "",
                   gloo ? "" : "torch's libraries are missing; pip install --force-reinstall torch"});
  lines.push_back({"communication.nccl", "nccl", nccl,
                   nccl         ? "with torch"
                   : torch_cuda ? "no library beside torch; built in, or on the system"
                                : "no (torch without CUDA)",
                   ""});
}

void add_import_lines(const std::string& python, std::vector<ReportLine>& lines, bool& failed) {
  const nlohmann::json answer = ask_python(python, kImportProbe);
  const std::string no_answer = text_of(answer, "problem");
  for (const char* name : {"torch", "deepspeed", "kernel_variant"}) {
    const std::string value = text_of(answer, name);
    const std::string problem = text_of(answer, (std::string(name) + "_problem").c_str());
    failed = failed || value.empty();
    lines.push_back({fmt::format("import.{}", name), fmt::format("{} (imported)", name), value_or_missing(value),
                     value.empty() ? "fails" : "", problem.empty() ? no_answer : problem});
  }
  for (const char* name : {"gloo", "nccl", "mpi"}) {
    const auto found = answer.find(name);
    if (found != answer.end() && found->is_boolean())
      lines.push_back({fmt::format("import.{}", name), fmt::format("{} (imported)", name), found->get<bool>(), "", ""});
  }
  const auto gpus = answer.find("gpus");
  if (gpus != answer.end() && gpus->is_number_integer())
    lines.push_back({"import.gpus", "GPUs (imported)", gpus->get<int64_t>(), "", ""});
}

}  // namespace

std::vector<ReportLine> python_lines(PythonCheck check, bool& import_failed, NativePart& native) {
  std::vector<ReportLine> lines;
  std::optional<std::string> python;
  std::string problem = "no Python beside this program or in PATH; install one, or set DEEPSCALE_PYTHON";
  try {
    python = find_python();
  } catch (const ConfigError& error) {
    problem = error.what();
  }
  Installed installed;
  if (python) {
    installed = find_installed(*python);
    problem = installed.problem;
  }
  const bool known = !installed.python_version.empty();
  lines.push_back({"versions.python", "python", value_or_missing(installed.python_version), "", problem});
  lines.push_back({"paths.python", "python executable", value_or_missing(installed.python_path), "", ""});
  if (known) add_torch_lines(installed, lines);
  add_own_lines(installed, lines);
  native = find_native_part(installed);
  add_backend_lines(installed, lines);
  if (check == PythonCheck::kFilesOnly) return lines;
  if (known) {
    add_import_lines(*python, lines, import_failed);
  } else {
    import_failed = true;
  }
  return lines;
}

}  // namespace deepscale
