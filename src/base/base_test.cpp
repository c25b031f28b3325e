#include <gtest/gtest.h>

#include <array>
#include <cstdlib>

#include "base/dtype.h"
#include "base/environment.h"
#include "base/error.h"
#include "base/log.h"
#include "base/sha256.h"
#include "base/text.h"

namespace deepscale {
namespace {

TEST(Error, CheckThrowsTheNamedClassWithTheFormattedMessage) {
  try {
    DS_CHECK_AS(ConfigError, 1 > 2, "zero_optimization.stage must be 0..3, got {}", 7);
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(), "zero_optimization.stage must be 0..3, got 7");
  }
}

TEST(Error, NearestNameFindsTyposAndRefusesStrangers) {
  const std::array<std::string_view, 3> names = {"train_batch_size", "optimizer", "scheduler"};
  EXPECT_EQ(nearest_name("train_batchsize", names), "train_batch_size");
  EXPECT_EQ(nearest_name("Optimiser", names), "optimizer");
  EXPECT_EQ(nearest_name("zzz", names), "");
}

TEST(Environment, IntegersAreCheckedAndEmptyMeansUnset) {
  // putenv, because every system has it; it keeps the string.
  static char number[] = "DEEPSCALE_TEST_VALUE=12";
  static char no_number[] = "DEEPSCALE_TEST_VALUE=12x";
  static char nothing[] = "DEEPSCALE_TEST_VALUE=";
  putenv(number);
  EXPECT_EQ(environment_int("DEEPSCALE_TEST_VALUE"), 12);
  putenv(no_number);
  EXPECT_THROW(environment_int("DEEPSCALE_TEST_VALUE"), ConfigError);
  putenv(nothing);
  EXPECT_FALSE(environment("DEEPSCALE_TEST_VALUE").has_value());
}

TEST(Log, LevelsParseAndFilter) {
  const Logger logger(3);
  logger.set_level(Logger::parse_level("error"));
  EXPECT_FALSE(logger.enabled(LogLevel::kWarning));
  EXPECT_TRUE(logger.enabled(LogLevel::kError));
  EXPECT_THROW(Logger::parse_level("loud"), ConfigError);
}

TEST(Sha256, GivesThePublishedDigests) {
  const auto hex = [](const Digest& digest) {
    std::string text;
    for (const uint8_t byte : digest) text += fmt::format("{:02x}", byte);
    return text;
  };
  // FIPS 180-4's examples, of one and two blocks, and the empty message.
  EXPECT_EQ(hex(sha256("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(hex(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq")),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(hex(sha256("")), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  // RFC 4231, test cases 2 and 6 (a key longer than a block).
  EXPECT_EQ(hmac_sha256("Jefe", "what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843");
  EXPECT_EQ(hmac_sha256(std::string(131, '\xaa'), "Test Using Larger Than Block-Size Key - Hash Key First"),
            "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54");
  EXPECT_TRUE(equal_secrets("abc", "abc"));
  EXPECT_FALSE(equal_secrets("abc", "abd"));
  EXPECT_FALSE(equal_secrets("abc", "ab"));
}

TEST(Text, TextOfUnknownOriginIsMadePrintable) {
  EXPECT_EQ(printable("plain"), "plain");
  EXPECT_EQ(printable("\xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80"), "\xc3\xa4 \xe2\x82\xac \xf0\x9f\x98\x80");
  EXPECT_EQ(printable("a\nb\x7f\xff"),
            "a\\x0a"
            "b\\x7f\\xff");
  EXPECT_EQ(printable("\xc3"), "\\xc3");
  EXPECT_EQ(printable("\xed\xa0\x80"), "\\xed\\xa0\\x80");                    // a surrogate
  EXPECT_EQ(printable("\xe0\x80\x80\xc0\x80"), "\\xe0\\x80\\x80\\xc0\\x80");  // overlong
  EXPECT_EQ(printable(std::string(101, 'x')), std::string(100, 'x') + "...");
  EXPECT_EQ(printable("abc\xc3\xa4", 4), "abc...");
}

TEST(DType, SizesAndNames) {
  EXPECT_EQ(size_of(DType::kBFloat16), 2);
  EXPECT_EQ(size_of(DType::kBool), 1);
  EXPECT_EQ(name_of(DType::kInt64), "int64");
}

}  // namespace
}  // namespace deepscale
