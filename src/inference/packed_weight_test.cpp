#include "inference/packed_weight.h"

#include <ATen/Functions.h>
#include <gtest/gtest.h>

#include "deepscale/error.h"

namespace deepscale {
namespace {

at::Tensor random(std::vector<int64_t> sizes, at::ScalarType dtype, uint64_t seed) {
  at::manual_seed(seed);
  return at::randn(sizes).to(dtype);
}

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return a.to(at::kDouble).sub(b.to(at::kDouble)).abs().max().item<double>();
}

struct Case {
  PackedShape shape;
  at::ScalarType dtype;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    for (const int bits : {4, 8}) {
      for (const bool symmetric : {false, true}) {
        all.push_back({{48, 128, bits, 32, symmetric}, dtype});
        all.push_back({{7, 37, bits, 16, symmetric}, dtype});  // nothing divides anything
      }
    }
  }
  return all;
}

TEST(PackedWeight, DequantisedValuesLieWithinHalfAStep) {
  for (const auto& [shape, dtype] : cases()) {
    const at::Tensor weight = random({shape.rows, shape.cols}, dtype, 1);
    const at::Tensor packed = pack_weight(weight, shape);
    EXPECT_EQ(packed.numel(), shape.numel(dtype));
    EXPECT_EQ(packed.scalar_type(), dtype);
    const at::Tensor back = unpack_weight(packed, shape);
    // Values lie in about +-4: a step is at most 8 / 15 (4 bits), and bf16 adds its roundings.
    const double step = 8.5 / ((1 << shape.bits) - 1);
    EXPECT_LE(largest_difference(back, weight), 0.5 * step + 0.05);
  }
}

TEST(PackedWeight, ProductsAreThoseOfTheDequantisedWeight) {
  for (const auto& [shape, dtype] : cases()) {
    const at::Tensor packed = pack_weight(random({shape.rows, shape.cols}, dtype, 2), shape);
    const at::Tensor bias = random({shape.rows}, dtype, 3);
    for (const int64_t rows : {1, 3, 40}) {
      const at::Tensor x = random({rows, shape.cols}, dtype, 4);
      const at::Tensor expected =
          at::linear(x.to(at::kDouble), unpack_weight(packed, shape).to(at::kDouble), bias.to(at::kDouble));
      const at::Tensor y = packed_linear(x, packed, shape, bias);
      EXPECT_EQ(y.scalar_type(), dtype);
      EXPECT_LE(largest_difference(y, expected), dtype == at::kFloat ? 1e-3 : 0.3) << rows << " rows";
    }
  }
}

TEST(PackedWeight, LeadingDimensionsOfXStay) {
  const PackedShape shape{16, 32, 8, 32, false};
  const at::Tensor packed = pack_weight(random({16, 32}, at::kFloat, 5), shape);
  const at::Tensor x = random({2, 3, 32}, at::kFloat, 6);
  const at::Tensor y = packed_linear(x, packed, shape, std::nullopt);
  EXPECT_EQ(y.sizes(), (std::vector<int64_t>{2, 3, 16}));
  EXPECT_TRUE(y.view({6, 16}).equal(packed_linear(x.view({6, 32}), packed, shape, std::nullopt)));
  EXPECT_EQ(packed_linear(at::zeros({0, 32}), packed, shape, std::nullopt).sizes(), (std::vector<int64_t>{0, 16}));
}

TEST(PackedWeight, AWeightWithoutColumnsLeavesTheBias) {
  const PackedShape shape{16, 0, 8, 32, false};
  const at::Tensor packed = pack_weight(at::zeros({16, 0}), shape);
  const at::Tensor bias = random({16}, at::kFloat, 12);
  (void)at::full({2, 3, 16}, 7.0);  // what memory without values might hold
  const at::Tensor x = at::zeros({2, 3, 0});
  EXPECT_TRUE(packed_linear(x, packed, shape, bias).equal(bias.expand({2, 3, 16})));
  EXPECT_TRUE(packed_linear(x, packed, shape, std::nullopt).equal(at::zeros({2, 3, 16})));
}

TEST(PackedWeight, TheDtypeOfTheProductIsThatOfXWhateverItsRows) {
  const PackedShape shape{16, 32, 8, 32, false};
  const at::Tensor packed = pack_weight(random({16, 32}, at::kBFloat16, 13), shape);
  const at::Tensor bias = random({16}, at::kBFloat16, 14);
  for (const int64_t rows : {4, 200}) {
    const at::Tensor x = random({rows, 32}, at::kFloat, 15);
    const at::Tensor y = packed_linear(x, packed, shape, bias);
    EXPECT_EQ(y.scalar_type(), at::kFloat);
    const at::Tensor expected = at::linear(x, unpack_weight(packed, shape).to(at::kFloat), bias.to(at::kFloat));
    EXPECT_LE(largest_difference(y, expected), 0.3);  // the unpacked weight is rounded to bf16, the kernel's is not
  }
}

TEST(PackedWeight, EmbeddingsAreRowsOfTheDequantisedWeight) {
  for (const auto& [shape, dtype] : cases()) {
    const at::Tensor packed = pack_weight(random({shape.rows, shape.cols}, dtype, 7), shape);
    const at::Tensor ids = at::arange(shape.rows, at::kLong).flip(0).view({1, shape.rows});
    const at::Tensor rows = packed_embedding(ids, packed, shape);
    EXPECT_TRUE(rows.squeeze(0).equal(unpack_weight(packed, shape).flip(0)));
  }
  const PackedShape shape{8, 32, 4, 32, false};
  const at::Tensor packed = pack_weight(random({8, 32}, at::kFloat, 8), shape);
  try {
    packed_embedding(at::full({1}, 8, at::kLong), packed, shape);
    ADD_FAILURE() << "no error";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("id 8 is outside of 0..7"), std::string::npos) << error.what();
  }
}

TEST(PackedWeight, WrongSizesAreNamed) {
  const PackedShape shape{8, 32, 4, 32, false};
  EXPECT_THROW(unpack_weight(at::zeros({3}), shape), Error);
  EXPECT_THROW(pack_weight(at::zeros({8, 31}), shape), Error);
  EXPECT_THROW(pack_weight(at::zeros({8, 32}), {8, 32, 3, 32, false}), ConfigError);
  EXPECT_THROW(pack_weight(at::zeros({8, 32}), {8, 32, 4, 0, false}), ConfigError);
  const at::Tensor packed = pack_weight(at::zeros({8, 32}), shape);
  EXPECT_THROW(packed_linear(at::zeros({1, 31}), packed, shape, std::nullopt), Error);
  EXPECT_THROW(packed_linear(at::zeros({1, 32}), packed, shape, at::zeros({7})), Error);
}

TEST(FewRowsLinear, IsATensProductWithinRounding) {
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    const at::Tensor weight = random({100, 72}, dtype, 9);
    const at::Tensor bias = random({100}, dtype, 10);
    for (const int64_t rows : {1, 5, 64}) {
      const at::Tensor x = random({rows, 72}, dtype, 11);
      const at::Tensor expected = at::linear(x.to(at::kDouble), weight.to(at::kDouble), bias.to(at::kDouble));
      EXPECT_LE(largest_difference(few_rows_linear(x, weight, bias), expected), dtype == at::kFloat ? 1e-4 : 0.15);
    }
  }
}

}  // namespace
}  // namespace deepscale
