#include "launcher/text.h"

#include <gtest/gtest.h>

#include "base/error.h"

namespace deepscale {
namespace {

using Strings = std::vector<std::string>;

TEST(Text, SplitsShellWordsAsAShellWould) {
  EXPECT_EQ(split_shell_words("", "x"), Strings{});
  EXPECT_EQ(split_shell_words("  -a  --b=c\t", "x"), (Strings{"-a", "--b=c"}));
  EXPECT_EQ(split_shell_words(R"('a b' "c \" d" e\ f '' g"h"'i')", "x"), (Strings{"a b", "c \" d", "e f", "", "ghi"}));
  EXPECT_EQ(split_shell_words(R"('\n' "\n")", "x"), (Strings{"\\n", "\\n"}));
  EXPECT_THROW(split_shell_words("'a", "--launcher_args"), ConfigError);
}

TEST(Text, QuotesForTheShellWhatTheShellWouldChange) {
  EXPECT_EQ(shell_quoted("/usr/bin/python3.11"), "/usr/bin/python3.11");
  EXPECT_EQ(shell_quoted(""), "''");
  EXPECT_EQ(shell_quoted("a b"), "'a b'");
  EXPECT_EQ(shell_quoted("it's $HOME"), "'it'\\''s $HOME'");
  for (const char* word : {"", "a b", "it's", "\"", "\\", "a\nb", "$x `y` *"}) {
    EXPECT_EQ(split_shell_words(shell_quoted(word), "x"), Strings{word});
  }
}

TEST(Text, CodesBase64BothWays) {
  EXPECT_EQ(base64url("{\"a\": [0]}"), "eyJhIjogWzBdfQ");
  std::string bytes;
  for (int i = 0; i < 70; ++i) {
    EXPECT_EQ(from_base64url(base64url(bytes)), bytes);
    bytes += static_cast<char>(i * 37);
  }
  EXPECT_EQ(from_base64url("YQ=="), "a");
  EXPECT_THROW(from_base64url("a+b"), ConfigError);
  EXPECT_THROW(from_base64url("abcde"), ConfigError);
}

}  // namespace
}  // namespace deepscale
