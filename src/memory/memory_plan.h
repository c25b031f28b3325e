// What each rank of a run will hold, and where, before anything is allocated. A plan is a description: it is made by
// make_memory_plan (engine/plan_builder.h), compared with a machine by check_plan (machine_limits.h), and printed here.
//
// A plan is an upper bound of what DeepScale allocates for the states of training between two steps and at their peak.
// Not in it, because the configuration does not say it: activations and what else a forward pass keeps for backward,
// buffers of the model, data loaders, what libraries and allocators keep for themselves, and the first copy of a model
// that is built whole (outside of zero.Init) and sharded afterwards.
// Torch-free. Threads: values.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace deepscale {

enum class MemoryPlace : uint8_t {
  kDevice,        ///< of an accelerator
  kHostPinned,    ///< host memory that is locked for devices or for the queue of files, as far as the system allows
  kHostPageable,  ///< ordinary host memory of one process
  kShared,        ///< host memory that the ranks of one host share; counted once, at the rank that owns the part
  kFile,          ///< under nvme_path
};
inline constexpr MemoryPlace kMemoryPlaces[] = {MemoryPlace::kDevice, MemoryPlace::kHostPinned,
                                                MemoryPlace::kHostPageable, MemoryPlace::kShared, MemoryPlace::kFile};
/// "device", "pinned", "pageable", "shared", "file".
std::string_view name_of(MemoryPlace place);

enum class PlannedState : uint8_t {
  kParameters,        ///< in the dtype in which they train
  kGradients,         ///< summed micro-batches
  kMaster,            ///< copy of the parameters that the optimizer updates
  kOptimizer,         ///< its moments
  kGather,            ///< sharded parameters that are whole around their use
  kReduce,            ///< buckets in which gradients wait for their reduction
  kResident,          ///< parameters from files that stay in memory as long as there is room
  kParamBuffers,      ///< memory in which parameters from files are used
  kOptimizerBuffers,  ///< memory in which states from files are updated
  kOther,             ///< norms, communication, and the programs themselves where they were asked for
};
/// "parameters", "gradients", "master weights", ...
std::string_view name_of(PlannedState state);

struct PlanRow {
  PlannedState state = PlannedState::kOther;
  MemoryPlace place = MemoryPlace::kHostPageable;
  int64_t bytes = 0;   ///< of one rank, the one that holds most
  std::string remark;  ///< what the figure depends on; may be empty
};

struct MemoryPlan {
  std::vector<PlanRow> rows;  ///< ordered by state; without rows of 0 bytes
  int ranks = 1;
  int ranks_per_host = 1;
  int64_t params_numel = 0;
  int64_t trainable_numel = 0;
  std::string optimizer_path;        ///< folder of the optimizer's files, if any
  std::string param_path;            ///< folder of the parameters' files, if any
  int64_t optimizer_file_bytes = 0;  ///< the two parts of the rows with kFile
  int64_t param_file_bytes = 0;
  std::vector<std::string> notes;  ///< assumptions, one sentence each

  /// Adds to the row of this state and place. Does nothing for 0 bytes.
  void add(PlannedState state, MemoryPlace place, int64_t bytes, const std::string& remark = "");

  [[nodiscard]] int64_t bytes(MemoryPlace place) const;                      ///< of one rank
  [[nodiscard]] int64_t bytes(PlannedState state) const;                     ///< of one rank, files included
  [[nodiscard]] int64_t bytes(PlannedState state, MemoryPlace place) const;  ///< of one rank
  /// Pinned, pageable and shared memory of one rank, and of all ranks of a full host.
  [[nodiscard]] int64_t rank_memory_bytes() const;
  [[nodiscard]] int64_t host_memory_bytes() const { return rank_memory_bytes() * ranks_per_host; }
};

/// "1.50 GiB"; below 1 GiB in MiB, below 1 MiB in KiB.
std::string readable_bytes(int64_t bytes);

}  // namespace deepscale
