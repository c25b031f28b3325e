#include "launcher/remote_command.h"

#include <gtest/gtest.h>

namespace deepscale {
namespace {

using Strings = std::vector<std::string>;

TEST(RemoteCommand, GoesToAllHostsThroughOnePdsh) {
  const RemoteCommand command{{"ls", "-l"}, 2222};
  EXPECT_EQ(pdsh_words(command, {"a", "b"}), (Strings{"pdsh", "-R", "ssh", "-S", "-f", "1024", "-w", "a,b", "ls -l"}));
  EXPECT_TRUE(pdsh_ssh_arguments(command).ends_with("-p 2222"));
}

TEST(RemoteCommand, GoesToEachHostThroughSshOtherwise) {
  const Strings words = ssh_words({{"echo", "$HOSTNAME"}, 0}, "a");
  ASSERT_GE(words.size(), 3U);
  EXPECT_EQ(words.front(), "ssh");
  EXPECT_EQ(words[words.size() - 2], "a");
  EXPECT_EQ(words.back(), "echo $HOSTNAME");
}

TEST(RemoteCommand, FindsTheHostsThatFailedInPdshsMessages) {
  const std::vector<std::string> lines = {"bad: ssh: connect to host bad port 22: Connection refused",
                                          "pdsh@here: bad: ssh exited with exit code 255", "good: 255"};
  EXPECT_EQ(blamed_by_pdsh(lines, "bad"), "ssh failed: ssh: connect to host bad port 22: Connection refused");
  EXPECT_EQ(blamed_by_pdsh(lines, "good"), "");
  EXPECT_EQ(hosts_that_pdsh_blames({"b: ls: cannot access 'x'", "pdsh@here: b: ssh exited with exit code 2",
                                    "pdsh@here: c: ssh exited with exit code 255",
                                    "pdsh@here: b: ssh exited with exit code 2", "pdsh@here: interrupted"}),
            (Strings{"b", "c"}));
}

TEST(LinePrefixer, NamesTheHostOnEveryLineHoweverTheTextIsCut) {
  LinePrefixer prefixer("a");
  EXPECT_EQ(prefixer.add("one\ntw"), "a: one\n");
  EXPECT_EQ(prefixer.add("o"), "");
  EXPECT_EQ(prefixer.add("\n\nthree"), "a: two\na: \n");
  EXPECT_EQ(prefixer.finish(), "a: three\n");
  EXPECT_EQ(prefixer.finish(), "");
}

}  // namespace
}  // namespace deepscale
