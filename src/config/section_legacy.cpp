// Tables of old training features and of sections that a third party reads.
#include "config/section_builder.h"

namespace deepscale {
namespace {

using config::any;
using config::at_least;
using config::between;
using config::lenient_section;
using config::one_of;

}  // namespace

const config::Section& table_of(const RawSwitch*) {
  using S = RawSwitch;
  static const config::Section kTable = lenient_section<S>("Only the switch is known; other keys are kept as they are.")
                                            .option("enabled", &S::enabled, any(), "Turns the feature on.")
                                            .rest(&S::rest)
                                            .build();
  return kTable;
}

const config::Section& table_of(const ProgressiveLayerDropOptions*) {
  using S = ProgressiveLayerDropOptions;
  static const config::Section kTable = lenient_section<S>("Drops layers with growing probability.")
                                            .option("enabled", &S::enabled, any(), "Turns layer dropping on.")
                                            .option("theta", &S::theta, between(0, 1), "Final probability to keep.")
                                            .option("gamma", &S::gamma, at_least(0), "Speed of the change.")
                                            .build();
  return kTable;
}

const config::Section& table_of(const EigenvalueOptions*) {
  using S = EigenvalueOptions;
  static const config::Section kTable =
      lenient_section<S>("Eigenvalues of the Hessian, for mixture of quantisation.")
          .option("enabled", &S::enabled, any(), "Turns the computation on.")
          .option("verbose", &S::verbose, any(), "Logs each eigenvalue.")
          .option("max_iter", &S::max_iter, at_least(1), "Most power iterations.")
          .option("tol", &S::tol, at_least(0), "Relative change at which the iteration ends.")
          .option("stability", &S::stability, at_least(0), "Added to norms before dividing.")
          .option("gas_boundary_resolution", &S::gas_boundary_resolution, at_least(1),
                  "Accumulation boundaries between two computations.")
          .option("layer_name", &S::layer_name, any(), "Prefix of the layers' names.")
          .option("layer_num", &S::layer_num, at_least(0), "Number of layers.")
          .build();
  return kTable;
}

const config::Section& table_of(const SparseAttentionOptions*) {
  using S = SparseAttentionOptions;
  static const config::Section kTable =
      lenient_section<S>("Block-sparse attention.")
          .option("mode", &S::mode, one_of({"dense", "fixed", "variable", "bigbird", "bslongformer", "local"}),
                  "Pattern of blocks.")
          .option("block", &S::block, at_least(1), "Side of a block.")
          .option("different_layout_per_head", &S::different_layout_per_head, any(), "Every head has its own pattern.")
          .option("num_local_blocks", &S::num_local_blocks, at_least(1), "Blocks of a local window.")
          .option("num_global_blocks", &S::num_global_blocks, at_least(0), "Global blocks of a window.")
          .option("attention", &S::attention, one_of({"bidirectional", "unidirectional"}), "Direction.")
          .option("horizontal_global_attention", &S::horizontal_global_attention, any(),
                  "Global blocks attend to all blocks.")
          .option("num_different_global_patterns", &S::num_different_global_patterns, at_least(1),
                  "Different patterns of global blocks.")
          .option("num_random_blocks", &S::num_random_blocks, at_least(0), "Random blocks of a row.")
          .option("local_window_blocks", &S::local_window_blocks, at_least(0), "Sizes of local windows.")
          .option("global_block_indices", &S::global_block_indices, at_least(0), "Indices of global blocks.")
          .option("global_block_end_indices", &S::global_block_end_indices, at_least(0),
                  "Ends of ranges of global blocks.")
          .option("num_sliding_window_blocks", &S::num_sliding_window_blocks, at_least(0),
                  "Blocks of the sliding window.")
          .build();
  return kTable;
}

}  // namespace deepscale
