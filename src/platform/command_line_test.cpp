#include "platform/command_line.h"

#include <gtest/gtest.h>

#include <random>

#include "deepscale/error.h"

namespace deepscale {
namespace {

TEST(CommandLine, QuotesOnlyWhatNeedsIt) {
  EXPECT_EQ(quote_argument("--num_gpus=2"), "--num_gpus=2");
  EXPECT_EQ(quote_argument("C:\\a\\b"), "C:\\a\\b");
  EXPECT_EQ(quote_argument(""), "\"\"");
  EXPECT_EQ(quote_argument("two words"), "\"two words\"");
  EXPECT_EQ(quote_argument("say \"hi\""), "\"say \\\"hi\\\"\"");
  EXPECT_EQ(quote_argument("C:\\with space\\"), "\"C:\\with space\\\\\"");
  EXPECT_EQ(quote_argument("a\\\"b"), "\"a\\\\\\\"b\"");
}

TEST(CommandLine, IsReadBackAsItWas) {
  const std::vector<std::string> arguments = {"C:\\Program Files\\Python\\python.exe",
                                              "",
                                              " ",
                                              "a b",
                                              "\"",
                                              "\\",
                                              "\\\\\"",
                                              "end\\",
                                              "tab\there",
                                              "{\"a\": 1}",
                                              "na\xC3\xAFve"};
  EXPECT_EQ(split_command_line(command_line(arguments)), arguments);
}

TEST(CommandLine, RandomArgumentsAreReadBackAsTheyWere) {
  std::mt19937 random(7);
  constexpr std::string_view kLetters = "ab \\\\\\\"\"\t";
  for (int round = 0; round < 20000; ++round) {
    std::vector<std::string> arguments = {"program"};
    for (size_t count = random() % 4; count > 0; --count) {
      std::string argument;
      for (size_t length = random() % 9; length > 0; --length) argument += kLetters[random() % kLetters.size()];
      arguments.push_back(argument);
    }
    ASSERT_EQ(split_command_line(command_line(arguments)), arguments) << command_line(arguments);
  }
}

TEST(CommandLine, SplitsAsTheDocumentedExamplesSay) {
  using Arguments = std::vector<std::string>;
  EXPECT_EQ(split_command_line("p \"a b c\" d e"), (Arguments{"p", "a b c", "d", "e"}));
  EXPECT_EQ(split_command_line("p \"ab\\\"c\" \"\\\\\" d"), (Arguments{"p", "ab\"c", "\\", "d"}));
  EXPECT_EQ(split_command_line("p a\\\\\\b d\"e f\"g h"), (Arguments{"p", "a\\\\\\b", "de fg", "h"}));
  EXPECT_EQ(split_command_line("p a\\\\\\\"b c d"), (Arguments{"p", "a\\\"b", "c", "d"}));
  EXPECT_EQ(split_command_line("p a\\\\\\\\\"b c\" d e"), (Arguments{"p", "a\\\\b c", "d", "e"}));
  EXPECT_EQ(split_command_line("\"C:\\a b\\p.exe\" x"), (Arguments{"C:\\a b\\p.exe", "x"}));
}

TEST(CommandLine, RefusesWhatItCannotCarry) {
  EXPECT_THROW(command_line({}), IoError);
  EXPECT_THROW(command_line({"a\"b"}), IoError);
  EXPECT_THROW(command_line({"a", std::string("b\0c", 3)}), IoError);
  EXPECT_THROW(batch_command_line("cmd.exe", {"a.bat", "line\nend"}), IoError);
  EXPECT_THROW(batch_command_line("cmd.exe", {"%PATH%.bat"}), IoError);
}

TEST(CommandLine, BatchFilesAreKnownByTheirEnding) {
  EXPECT_TRUE(is_batch_file("C:\\tools\\run.BAT"));
  EXPECT_TRUE(is_batch_file("run.cmd"));
  EXPECT_TRUE(is_batch_file("run.bat. ."));
  EXPECT_FALSE(is_batch_file("run.exe"));
  EXPECT_FALSE(is_batch_file("bat"));
  EXPECT_FALSE(is_batch_file(""));
}

TEST(CommandLine, CmdSeesNoCommandsInTheArgumentsOfABatchFile) {
  const std::string line = batch_command_line("C:\\Windows\\System32\\cmd.exe",
                                              {"C:\\my tools\\run.bat", "a&b", "100%", "say \"hi\"", "end\\"});
  EXPECT_EQ(line,
            "\"C:\\Windows\\System32\\cmd.exe\" /e:ON /v:OFF /d /s /c \"\"C:\\my tools\\run.bat\" \"a&b\" "
            "\"100%%cd:~,%\" \"say \"\"hi\"\"\" \"end\\\\\"\"");
}

}  // namespace
}  // namespace deepscale
