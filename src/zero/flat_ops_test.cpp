#include "zero/flat_ops.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include "kernels/cpu/spans.h"

namespace deepscale {
namespace {

TEST(FlatOps, SumsOfSquaresThroughAtenAgreeWithTheKernel) {
  for (const int64_t numel : {int64_t{1}, kernels::kNormBlock, kernels::kNormBlock * 3 + 17}) {
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
      const at::Tensor values = at::arange(numel, at::kFloat).mul(0.1).sin().to(dtype);
      const int64_t blocks = (numel + kernels::kNormBlock - 1) / kernels::kNormBlock;
      const at::Tensor kernel = at::full({blocks}, -1.0, at::kDouble), aten = at::full({blocks}, -1.0, at::kDouble);
      flat::sum_of_squares(values, kernel);
      flat::sum_of_squares_by_aten(values, aten);
      EXPECT_TRUE(at::allclose(kernel, aten, 1e-6)) << numel;
      EXPECT_TRUE(at::allclose(kernel.sum(), values.to(at::kDouble).square().sum(), 1e-6)) << numel;
    }
  }
}

TEST(FlatOps, InfinityAndNanStayInTheirBlock) {
  at::Tensor values = at::ones({kernels::kNormBlock * 3});
  values[kernels::kNormBlock + 5].fill_(std::numeric_limits<float>::quiet_NaN());
  for (const auto sum : {flat::sum_of_squares, flat::sum_of_squares_by_aten}) {
    const at::Tensor partials = at::zeros({3}, at::kDouble);
    sum(values, partials);
    EXPECT_EQ(partials[0].item<double>(), kernels::kNormBlock);
    EXPECT_TRUE(std::isnan(partials[1].item<double>()));
    EXPECT_EQ(partials[2].item<double>(), kernels::kNormBlock);
  }
}

}  // namespace
}  // namespace deepscale
