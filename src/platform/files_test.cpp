#include "platform/files.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>

#include "deepscale/error.h"

namespace deepscale {
namespace {

TEST(Files, FoldersAndFilesAreMadeFoundRenamedAndRemoved) {
  const std::string root = ::testing::TempDir() + "files_test_" + std::to_string(::getpid());
  make_directories(root + "/a/b");
  make_directories(root + "/a/b/");  // again, and with a slash at the end
  std::ofstream(root + "/a/one") << "12345";
  EXPECT_EQ(file_size(root + "/a/one"), 5);
  EXPECT_EQ(file_size(root + "/a"), std::nullopt);
  EXPECT_EQ(file_size(root + "/none"), std::nullopt);
  std::ofstream(root + "/a/two") << "1";
  rename_file(root + "/a/one", root + "/a/two");
  EXPECT_EQ(file_size(root + "/a/two"), 5);
  EXPECT_EQ(list_directory(root + "/a"), (std::vector<std::string>{"b", "two"}));
  EXPECT_TRUE(list_directory(root + "/none").empty());
  EXPECT_THROW(make_directories(root + "/a/two/c"), IoError);
  EXPECT_THROW(rename_file(root + "/none", root + "/a/three"), IoError);
  EXPECT_FALSE(remove_file(root + "/a"));
  for (const char* name : {"/a/two", "/a/b", "/a", ""}) EXPECT_TRUE(remove_file(root + name)) << name;
}

}  // namespace
}  // namespace deepscale
