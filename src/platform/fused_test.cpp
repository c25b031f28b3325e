// The kernels' fallback and their scalar models need an fma that rounds once; one C library of a compiler that we use
// (mingw-w64) has none, so the platform brings its own there.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace {

TEST(FusedMultiplyAdd, RoundsOnceInDouble) {
  // Results of the processor's instruction, where rounding the product first gives something else.
  struct Case {
    double a, b, c, expected;
  };
  volatile double a = 0;  // so that the compiler does not compute it
  for (const Case& example : {
           Case{0x1.efaca4dbd97e3p+920, 0x1.ac15e436fcbe8p+82, 0x1.a09523afa6fcfp+148, 0x1.9e6f8354a8229p+1003},
           Case{0x1.6d11ebc0f935bp-15, 0x1.7d7cb6662829fp+26, 0x1.8a8fd88826b5cp-20, 0x1.1002c255f2c18p+12},
           Case{-0x1.6f6c93e34b87ep-759, 0x1.d7ec49ad9f353p+965, 0x1.d4e7e39422537p-16, -0x1.52a9f2f756469p+207},
           Case{1 + 0x1p-52, 1 - 0x1p-52, -1, -0x1p-104},
           Case{0x1p-1074, 0.5, 0x1p-1074, 0x1p-1073},
           Case{0x1.8p-1000, 0x1p-74, 0x1p-1022, 0x1.0000000000002p-1022},
           Case{0x1p-600, 0x1p-600, 0x1p-1074, 0x1p-1074},
           Case{0x1p1023, 2, -0x1p1023, 0x1p1023},
       }) {
    a = example.a;
    EXPECT_EQ(std::fma(a, example.b, example.c), example.expected) << example.a << " " << example.b << " " << example.c;
  }
  a = 3;
  EXPECT_FALSE(std::signbit(std::fma(a, 2.0, -6.0)));
  a = -0.0;
  EXPECT_TRUE(std::signbit(std::fma(a, 2.0, -0.0)));
  EXPECT_EQ(std::fma(a, 2.0, std::numeric_limits<double>::infinity()), std::numeric_limits<double>::infinity());
}

TEST(FusedMultiplyAdd, RoundsOnceInFloat) {
  volatile float a = 1 + 0x1p-23f;
  EXPECT_EQ(std::fma(a, 1 - 0x1p-23f, -1.0f), -0x1p-46f);
  // The exact sum lies a little below the middle between two floats, and rounding to double first puts it there.
  a = 1 + 0x1p-12f;
  EXPECT_EQ(std::fma(a, 1 + 0x1p-12f, -0x1p-80f), 1 + 0x1p-11f);
  EXPECT_EQ(std::fma(a, 1 + 0x1p-12f, 0x1p-80f), 1 + 0x1p-11f + 0x1p-23f);
}

}  // namespace
