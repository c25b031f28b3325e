#include "platform/files.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <thread>

#include "deepscale/error.h"
#include "platform/resources.h"

namespace deepscale {
namespace {

TEST(Files, FoldersAndFilesAreMadeFoundRenamedAndRemoved) {
  const std::string root = ::testing::TempDir() + "files_test_" + std::to_string(this_process_id());
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

TEST(Files, AFileIsReplacedWhileOthersReadIt) {
  const std::string path = ::testing::TempDir() + "files_test_read_" + std::to_string(this_process_id());
  std::ofstream(path) << "old";
  std::atomic<bool> done = false;
  std::thread reader([&] {
    while (!done) {
      std::string text;
      std::ifstream(path) >> text;
      EXPECT_TRUE(text.empty() || text == "old" || text == "new") << text;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  });
  for (int round = 0; round < 100; ++round) {
    std::ofstream(path + ".new") << "new";
    EXPECT_NO_THROW(rename_file(path + ".new", path));
  }
  done = true;
  reader.join();
  EXPECT_EQ(file_size(path), 3);
  EXPECT_TRUE(remove_file(path));
}

TEST(Files, ATildeAtTheBeginningIsThisUsersFolder) {
#ifdef _WIN32
  const char* const home = std::getenv("USERPROFILE");
#else
  const char* const home = std::getenv("HOME");
#endif
  if (home == nullptr || *home == 0) GTEST_SKIP() << "this user has no folder";
  EXPECT_EQ(expanded_home("~"), home);
  EXPECT_EQ(expanded_home("~/a/b"), std::string(home) + "/a/b");
  for (const char* path : {"", "a/~", "~a", "/~/b"}) EXPECT_EQ(expanded_home(path), path);
}

TEST(Files, NamesAreUtf8AndMayBeLong) {
  const std::string root = ::testing::TempDir() + "files_test_utf8_" + std::to_string(this_process_id());
  const std::string folder = root + "/na\xC3\xAFve \xE6\xB7\xB1/" + std::string(120, 'x') + "/" + std::string(120, 'y');
  make_directories(folder);
  const std::string file = folder + "/\xC3\xA9t\xC3\xA9";
  std::ofstream(native_path(file).c_str()) << "123";
  EXPECT_EQ(file_size(file), 3);
  EXPECT_EQ(list_directory(folder), std::vector<std::string>{"\xC3\xA9t\xC3\xA9"});
  EXPECT_EQ(list_directory(root), std::vector<std::string>{"na\xC3\xAFve \xE6\xB7\xB1"});
  EXPECT_TRUE(remove_file(file));
  for (std::string path = folder; path != root; path.resize(path.rfind('/'))) EXPECT_TRUE(remove_file(path)) << path;
  EXPECT_TRUE(remove_file(root));
}

}  // namespace
}  // namespace deepscale
