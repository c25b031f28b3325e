#include "launcher/report.h"

#include "platform/machine.h"

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

// In DeepSpeed's spelling. docs/status.md says what each of them is replaced by.
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

std::vector<OperatorRow> operator_rows() {
  std::vector<OperatorRow> rows;
  for (const OperatorFacts& facts : kOperators) {
    OperatorRow row{facts.name, facts.needs != Needs::kLater, true, ""};
    if (facts.needs == Needs::kLater) row.why_not = "not built yet";
    if (facts.needs == Needs::kSharedMemory && shared_memory_bytes() == 0)
      row.why_not = "there is no shared memory file system; mount /dev/shm";
    row.usable = row.why_not.empty();
    rows.push_back(std::move(row));
  }
  return rows;
}

Report make_report(PythonCheck check) {
  Report report;
  report.operators = operator_rows();
  report.environment = python_lines(check, report.import_failed);
  const std::vector<ReportLine> machine = machine_lines();
  report.environment.insert(report.environment.end(), machine.begin(), machine.end());
  return report;
}

}  // namespace deepscale
