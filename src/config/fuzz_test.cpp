// Damaged configurations end in ConfigError or are accepted; nothing else may happen.
#include <fmt/core.h>

#include <random>

#include "config/test_support.h"

namespace deepscale {
namespace {

const std::string& valid_text() {
  static const std::string kText = R"({
  // a bit of everything
  "train_batch_size": 8, "gradient_accumulation_steps": "auto", "steps_per_print": Infinity,
  "optimizer": {"type": "AdamW", "params": {"lr": 1e-4, "betas": [0.9, 0.999], "eps": "auto"}},
  "zero_optimization": {"stage": 3, "reduce_bucket_size": 5e8, "overlap_comm": null, "cpu_offload": false,
    "offload_param": {"device": "cpu", "pin_memory": true}, "leaf_module": {"classes": ["A", "B\u00e9"]}}, # more
  "bfloat16": {"enabled": true}, "zero_optimization.stage": 2,
  "compression_training": {"weight_quantization": {"different_groups": {"g": {"params": {"start_bits": 8, "target_bits": 4}}}}},
  "gradient_clipping": true, /* end */ "amp": {"enabled": false, "x": [1, {"y": null}]},
})";
  return kText;
}

// Accepted text must also print and read back.
void survive(const std::string& text) {
  try {
    const Config config = Config::parse(text, 2);
    ASSERT_EQ(Config::parse(config.to_json(), 2).to_json(), config.to_json()) << text;
  } catch (const ConfigError& error) {
    ASSERT_STRNE(error.what(), "");
  }
  try {
    Config::open(text, 2, ParseMode::kZeroInit);
  } catch (const ConfigError&) {
  }
}

TEST(Fuzz, TheTextItselfIsValid) {
  EXPECT_EQ(error_of_text(valid_text(), 2), "");
}

TEST(Fuzz, EveryTruncationIsSurvived) {
  for (size_t length = 0; length < valid_text().size(); ++length) survive(valid_text().substr(0, length));
}

TEST(Fuzz, FlippedBitsInEveryByteAreSurvived) {
  for (size_t i = 0; i < valid_text().size(); ++i) {
    for (const int bit : {0, 1, 4, 5, 7}) {
      std::string text = valid_text();
      text[i] = static_cast<char>(text[i] ^ (1 << bit));
      survive(text);
    }
  }
}

TEST(Fuzz, RandomSplicesAreSurvived) {
  std::mt19937 random(1234);
  const std::string& text = valid_text();
  const std::string pieces[] = {"{",
                                "}",
                                "[",
                                "]",
                                ",",
                                ":",
                                "\"",
                                "\\",
                                "null",
                                "Infinity",
                                "-Infinity",
                                "1e400",
                                "/*",
                                "//",
                                "#",
                                "\"auto\"",
                                "true",
                                "-",
                                "\xff",
                                std::string(1, '\0'),
                                "99999999999999999999"};
  for (int round = 0; round < 1000; ++round) {
    std::string damaged = text;
    for (int cut = 0; cut < 3; ++cut) {
      const size_t at = random() % damaged.size();
      damaged.replace(at, random() % 5, pieces[random() % std::size(pieces)]);
    }
    survive(damaged);
  }
}

TEST(Fuzz, EveryKeyTakesEveryKindOfValueWithoutHarm) {
  const Config config = Config::parse(R"({"train_batch_size": 2})", 2);
  const std::string text = config.to_text();
  const char* values[] = {"null", "true",     "-1",      "0",  "1.5",  "1e300", "Infinity",
                          "\"\"", "\"auto\"", "\"cpu\"", "[]", "[[]]", "{}",    "{\"a\": 1}"};
  for (size_t begin = 0; begin < text.size();) {
    const size_t end = text.find(" = ", begin);
    std::string path = text.substr(begin, end - begin);
    begin = text.find('\n', end) + 1;
    std::string opening;
    std::string closing;
    for (size_t dot = path.find('.'); dot != std::string::npos; dot = path.find('.')) {
      opening += "\"" + path.substr(0, dot) + "\": {";
      closing += "}";
      path = path.substr(dot + 1);
    }
    for (const char* value : values) survive("{" + opening + "\"" + path + "\": " + value + closing + "}");
  }
}

TEST(Fuzz, MegabytesOfUnknownKeysTakeSeconds) {
  std::string text = R"({"train_batch_size": 8)";
  for (int i = 0; i < 200'000; ++i) text += fmt::format(",\"k{}\":1", i);
  EXPECT_EQ(Config::parse(text + "}", 1).warnings().size(), 200'000u);
  const Config config = Config::parse(R"({"train_batch_size": 8, ")" + std::string(8 << 20, 'k') + "\": 1}", 1);
  ASSERT_EQ(config.warnings().size(), 1u);
  EXPECT_LT(config.warnings().front().size(), 300u);
}

}  // namespace
}  // namespace deepscale
