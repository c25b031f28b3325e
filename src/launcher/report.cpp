#include "launcher/report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "launcher/python.h"
#include "platform/machine.h"
#include "platform/process.h"

namespace deepscale {
namespace {

constexpr const char* kBuiltOperators[] = {"cpu_adam",   "cpu_adagrad", "cpu_lion",           "fused_adam",
                                           "fused_lamb", "fused_lion",  "deepspeed_shm_comm", "utils"};
constexpr const char* kLaterOperators[] = {"async_io",
                                           "gds",
                                           "pin_memory",
                                           "deepspeed_ccl_comm",
                                           "evoformer_attn",
                                           "fp_quantizer",
                                           "transformer_inference",
                                           "inference_core_ops",
                                           "cutlass_ops",
                                           "quantizer",
                                           "ragged_device_ops",
                                           "ragged_ops",
                                           "random_ltd",
                                           "spatial_inference",
                                           "stochastic_transformer",
                                           "transformer",
                                           "dc"};

constexpr int64_t kSmallSharedMemory = int64_t{512} << 20;

/// Prints one JSON object. Reads version files instead of importing: torch alone takes seconds.
constexpr const char* kFilesProbe = R"(
import importlib.metadata as metadata, importlib.util as util, json, os, platform, sys
sys.path = [p for p in sys.path if p not in ("", os.getcwd())]
out = {"python": platform.python_version(), "executable": sys.executable}
for name in ("torch", "deepspeed"):
    spec = util.find_spec(name)
    out[name] = os.path.dirname(spec.origin) if spec and spec.origin else None
    try:
        out[name + "_version"] = metadata.version(name)
    except metadata.PackageNotFoundError:
        out[name + "_version"] = None
if out["torch"]:
    facts = {}
    try:
        exec(open(os.path.join(out["torch"], "version.py")).read(), facts)
    except Exception as error:
        out["torch_problem"] = "version.py: %s" % error
    out["torch_version"] = facts.get("__version__") or out["torch_version"]
    out["cuda"], out["hip"] = facts.get("cuda"), facts.get("hip")
if out["deepspeed"]:
    folder = os.path.join(out["deepspeed"], "_torch")
    found = sorted(os.listdir(folder), key=lambda v: [int(n) for n in v.split(".") if n.isdigit()]) if os.path.isdir(folder) else []
    out["parts"] = "torch " + ", ".join(found) if found else "nothing"
    minor = ".".join((out["torch_version"] or "").split(".")[:2])
    if minor and minor not in found:
        out["parts_problem"] = "no compiled part for torch %s: install a torch of the list" % out["torch_version"]
print(json.dumps(out))
)";

constexpr const char* kImportProbe = R"(
import json, os, sys
sys.path = [p for p in sys.path if p not in ("", os.getcwd())]
out = {}
def attempt(name, action):
    try:
        out[name] = str(action())
    except BaseException as error:
        out[name + "_problem"] = "%s: %s" % (type(error).__name__, error)
attempt("torch import", lambda: "works, torch " + __import__("torch").__version__)
attempt("deepspeed import", lambda: "works, " + __import__("deepspeed").__version__)
attempt("kernel variant", lambda: __import__("deepspeed._C", fromlist=["_C"]).cpu_target_name())
print(json.dumps(out))
)";

std::string text_of(const nlohmann::json& object, const char* key, const char* otherwise) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : otherwise;
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
    return {{"problem", fmt::format("{} gave no answer: {}", python, result.status.describe())}};
  } catch (const IoError& error) {
    return {{"problem", error.what()}};
  }
}

void add_python_lines(std::vector<ReportLine>& lines, PythonCheck check) {
  const std::optional<std::string> python = find_python();
  if (!python) {
    lines.push_back({"python", "none", "no Python beside this program or in PATH; set DEEPSCALE_PYTHON"});
    return;
  }
  const nlohmann::json facts = ask_python(*python, kFilesProbe);
  const std::string problem = text_of(facts, "problem", "");
  lines.push_back({"python",
                   fmt::format("{} ({})", text_of(facts, "python", "?"), text_of(facts, "executable", python->c_str())),
                   problem});
  const std::string torch = text_of(facts, "torch", "not installed");
  const std::string own = text_of(facts, "deepspeed", "not installed");
  lines.push_back({"torch install path", torch, torch == "not installed" ? "pip install torch==2.11.0" : ""});
  lines.push_back({"torch version", text_of(facts, "torch_version", "unknown"), text_of(facts, "torch_problem", "")});
  lines.push_back({"torch cuda version", text_of(facts, "cuda", "none"), ""});
  lines.push_back({"torch hip version", text_of(facts, "hip", "none"), ""});
  lines.push_back(
      {"deepspeed install path", own, own == "not installed" ? "the Python package is not installed here" : ""});
  lines.push_back({"deepspeed info", fmt::format("{} (DeepScale)", DEEPSCALE_VERSION), ""});
  lines.push_back(
      {"deepspeed wheel compiled w.", text_of(facts, "parts", "unknown"), text_of(facts, "parts_problem", "")});
  if (check == PythonCheck::kFilesOnly) return;
  const nlohmann::json imports = ask_python(*python, kImportProbe);
  for (const char* name : {"torch import", "deepspeed import", "kernel variant"}) {
    const std::string failure = text_of(imports, (std::string(name) + "_problem").c_str(), "");
    lines.push_back(
        {name, text_of(imports, name, "fails"), failure.empty() ? text_of(imports, "problem", "") : failure});
  }
}

std::string gigabytes(int64_t bytes) {
  return fmt::format("{:.2f} GB", static_cast<double>(bytes) / (1 << 30));
}

void add_machine_lines(std::vector<ReportLine>& lines) {
  const ProcessorFacts processor = processor_facts();
  lines.push_back({"system", system_description(), ""});
  lines.push_back({"processor", fmt::format("{}, {} usable cores", processor.name, usable_cpus().size()), ""});
  lines.push_back({"processor features", fmt::format("{}", fmt::join(processor.features, " ")), ""});
  lines.push_back({"GPUs", fmt::format("{}", visible_gpu_count()), ""});
  lines.push_back({"memory", gigabytes(total_memory_bytes()), ""});
  const int64_t shared = shared_memory_bytes();
  lines.push_back({"shared memory (/dev/shm) size", gigabytes(shared),
                   shared < kSmallSharedMemory ? "less than 512 MB; containers: --shm-size" : ""});
}

std::string dotted(const std::string& name, size_t width) {
  return name + " " + (name.size() + 1 < width ? std::string(width - name.size() - 1, '.') : "");
}

struct Palette {
  const char* good;
  const char* warning;
  const char* bad;
  const char* end;
};

}  // namespace

Report make_report(PythonCheck check) {
  Report report;
  for (const char* name : kBuiltOperators) report.operators.push_back({name, true, ""});
  for (const char* name : kLaterOperators) report.operators.push_back({name, false, "not built yet"});
  add_python_lines(report.environment, check);
  add_machine_lines(report.environment);
  return report;
}

std::string format_report(const Report& report, const ReportView& view) {
  constexpr size_t kOperatorWidth = 23;
  constexpr size_t kEnvironmentWidth = 33;
  const Palette color = view.colors ? Palette{"\033[92m", "\033[93m", "\033[91m", "\033[0m"} : Palette{"", "", "", ""};
  const std::string rule = std::string(50, '-') + "\n";
  std::string text;
  if (view.operators) {
    text += rule + "DeepSpeed C++/CUDA extension op report\n" + rule;
    text +=
        "NOTE: Operators are part of the installed package; nothing is compiled\n      at run time and no compiler is "
        "needed.\n";
    text += rule + "op name ................ installed .. compatible\n" + rule;
    for (const OperatorRow& row : report.operators) {
      const std::string verdict =
          row.built ? fmt::format("{}[YES]{} ...... {}[OKAY]{}", color.good, color.end, color.good, color.end)
                    : fmt::format("{}[NO]{} ....... {}[NO]{}", color.warning, color.end, color.warning, color.end);
      text += fmt::format("{} {}", dotted(row.name, kOperatorWidth), verdict);
      text += row.why_not.empty() || !view.warnings ? "\n" : fmt::format("  {}\n", row.why_not);
    }
    text += rule;
  }
  text += "DeepSpeed general environment info:\n";
  for (const ReportLine& line : report.environment) {
    text += fmt::format("{} {}\n", dotted(line.name, kEnvironmentWidth), line.value);
    if (view.warnings && !line.warning.empty())
      text += fmt::format("{} [WARNING] {}{}\n", color.bad, line.warning, color.end);
  }
  return text;
}

std::string format_report_json(const Report& report) {
  nlohmann::ordered_json json;
  json["operators"] = nlohmann::ordered_json::array();
  for (const OperatorRow& row : report.operators) {
    json["operators"].push_back(
        {{"name", row.name}, {"installed", row.built}, {"compatible", row.built}, {"why_not", row.why_not}});
  }
  json["environment"] = nlohmann::ordered_json::object();
  json["warnings"] = nlohmann::ordered_json::array();
  for (const ReportLine& line : report.environment) {
    json["environment"][line.name] = line.value;
    if (!line.warning.empty()) json["warnings"].push_back(fmt::format("{}: {}", line.name, line.warning));
  }
  return json.dump(2) + "\n";
}

}  // namespace deepscale
