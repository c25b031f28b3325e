#include "launcher/report.h"

#include "base/error.h"
#include "platform/shared_memory.h"

namespace deepscale {
namespace {

/// What an operator needs beside being part of the package.
enum class Needs : uint8_t {
  kNothing,
  kSharedMemory,
  kLater,  ///< does not exist yet
};

struct OperatorFacts {
  const char* name;
  Needs needs;
};

constexpr int64_t kSample = 1 << 16;

// In DeepSpeed's spelling.
constexpr OperatorFacts kOperators[] = {
    {"async_io", Needs::kNothing},
    {"cpu_adam", Needs::kNothing},
    {"cpu_adagrad", Needs::kNothing},
    {"cpu_lion", Needs::kNothing},
    {"fused_adam", Needs::kNothing},
    {"fused_lamb", Needs::kNothing},
    {"fused_lion", Needs::kNothing},
    {"deepspeed_shm_comm", Needs::kSharedMemory},
    {"utils", Needs::kNothing},
    {"pin_memory", Needs::kNothing},
    {"gds", Needs::kLater},
    {"deepspeed_ccl_comm", Needs::kLater},
    {"evoformer_attn", Needs::kLater},
    {"fp_quantizer", Needs::kLater},
    {"quantizer", Needs::kLater},
    {"random_ltd", Needs::kLater},
    {"sparse_attn", Needs::kLater},
    {"spatial_inference", Needs::kLater},
    {"transformer", Needs::kLater},
    {"stochastic_transformer", Needs::kLater},
    {"transformer_inference", Needs::kLater},
    {"inference_core_ops", Needs::kLater},
    {"cutlass_ops", Needs::kLater},
    {"ragged_device_ops", Needs::kLater},
    {"ragged_ops", Needs::kLater},
    {"dc", Needs::kLater},
};

}  // namespace

std::string shared_memory_problem() {
  try {
    SharedMemory::create(kSample).commit(0, kSample);
    return "";
  } catch (const IoError& error) {
    return error.what();
  }
}

std::vector<OperatorRow> operator_rows(const NativePart& native) {
  std::vector<OperatorRow> rows;
  for (const OperatorFacts& facts : kOperators) {
    OperatorRow row{facts.name, facts.needs != Needs::kLater && native.present, true, native.problem};
    if (facts.needs == Needs::kLater) row.why_not = "not built yet";
    if (facts.needs == Needs::kSharedMemory && row.why_not.empty()) row.why_not = shared_memory_problem();
    row.usable = row.why_not.empty();
    rows.push_back(std::move(row));
  }
  return rows;
}

Report make_report(PythonCheck check) {
  Report report;
  NativePart native;
  report.environment = python_lines(check, report.import_failed, native);
  report.operators = operator_rows(native);
  const std::vector<ReportLine> machine = machine_lines();
  report.environment.insert(report.environment.end(), machine.begin(), machine.end());
  return report;
}

}  // namespace deepscale
