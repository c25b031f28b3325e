// Names of checkpoint files and of the entries in them, as DeepSpeed's tools know them (docs/cpp.md draws the tree).
#pragma once

#include <array>
#include <string>
#include <string_view>

namespace deepscale {

inline std::string whole_model_file(const std::string& folder) {
  return folder + "/mp_rank_00_model_states.pt";
}

inline std::string model_piece_file(const std::string& folder, int rank) {
  return folder + "/zero_pp_rank_" + std::to_string(rank) + "_mp_rank_00_model_states.pt";
}

inline std::string optimizer_file(const std::string& folder, int rank, bool bf16) {
  return folder + (bf16 ? "/bf16_" : "/") + "zero_pp_rank_" + std::to_string(rank) + "_mp_rank_00_optim_states.pt";
}

/// Entries of a model file that belong to the library; all others are the program's.
inline constexpr std::array<std::string_view, 19> kModelFileEntries = {"module",
                                                                       "buffer_names",
                                                                       "optimizer",
                                                                       "param_shapes",
                                                                       "frozen_param_shapes",
                                                                       "shared_params",
                                                                       "lr_scheduler",
                                                                       "data_sampler",
                                                                       "random_ltd",
                                                                       "frozen_param_fragments",
                                                                       "skipped_steps",
                                                                       "global_steps",
                                                                       "global_samples",
                                                                       "dp_world_size",
                                                                       "mp_world_size",
                                                                       "ds_config",
                                                                       "ds_version",
                                                                       "num_experts",
                                                                       "checkpoint_parallel_dimensions"};

}  // namespace deepscale
