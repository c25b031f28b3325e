#include "checkpoint/zip_file.h"

#include <gtest/gtest.h>

#include <fstream>
#include <utility>
#include <vector>

#include "checkpoint/zip_stream.h"
#include "deepscale/error.h"
#include "platform/files.h"
#include "platform/resources.h"

namespace deepscale {
namespace {

class Zip : public ::testing::Test {
 protected:
  void SetUp() override { path_ = ::testing::TempDir() + "zip_file_test_" + std::to_string(this_process_id()); }
  void TearDown() override { remove_file(path_); }

  void write(const std::string& bytes) const {
    std::ofstream(native_path(path_).c_str(), std::ios::binary | std::ios::trunc) << bytes;
  }
  static std::string archive(const std::vector<std::pair<std::string, std::string>>& contents) {
    std::vector<ZipMember> members;
    for (const auto& [name, text] : contents) members.push_back({name, {part_of(text)}});
    ZipStream stream("box", std::move(members));
    std::string bytes(static_cast<size_t>(stream.bytes()), '\0');
    stream.source()(0, stream.bytes(), bytes.data());
    return bytes;
  }
  static std::string sample() {
    return archive({{"first", "hello"}, {"empty", ""}, {"folder/second", std::string(1000, 'x')}});
  }
  static std::string many() {
    std::vector<std::pair<std::string, std::string>> contents;
    for (int i = 0; i < 66'000; ++i) {
      contents.emplace_back(std::to_string(i), std::string(reinterpret_cast<const char*>(&i), sizeof(i)));
    }
    return archive(contents);
  }

  std::string path_;
};

TEST_F(Zip, MembersComeBackAligned) {
  write(sample());
  ZipFile zip = ZipFile::open(path_);
  EXPECT_EQ(zip.folder(), "box");
  EXPECT_EQ(zip.read("first"), "hello");
  EXPECT_EQ(zip.read("empty"), "");
  EXPECT_EQ(zip.read("folder/second"), std::string(1000, 'x'));
  EXPECT_EQ(zip.find("third"), nullptr);
  EXPECT_EQ(zip.find("folder/second")->begin % 64, 0);
  EXPECT_THROW((void)zip.read("third"), CheckpointError);
}

TEST_F(Zip, DamagedBytesNeverDoMoreThanThrow) {
  const std::string bytes = sample();
  int refused = 0;
  for (size_t place = 0; place < bytes.size(); ++place) {
    for (const char other : {'\x00', '\xff', '\x7f'}) {
      std::string changed = bytes;
      changed[place] = other;
      write(changed);
      try {
        ZipFile zip = ZipFile::open(path_);
        for (const char* name : {"first", "empty", "folder/second"}) {
          if (zip.find(name) != nullptr) (void)zip.read(name);
        }
      } catch (const CheckpointError&) {
        ++refused;
      }
    }
  }
  EXPECT_GT(refused, 1000);
}

TEST_F(Zip, PartsThatShareBytesOrANameAreRefused) {
  const auto refusal = [&](const std::string& bytes) -> std::string {
    write(bytes);
    try {
      (void)ZipFile::open(path_);
      return "no error";
    } catch (const CheckpointError& error) {
      return error.what();
    }
  };
  std::string shared = sample();
  const size_t first = shared.find("PK\x01\x02"), second = shared.find("PK\x01\x02", first + 1);
  shared.replace(second + 42, 4, shared.substr(first + 42, 4));  // both entries point to the same local header
  EXPECT_NE(refusal(shared).find("overlap"), std::string::npos) << refusal(shared);
  const std::string twice = refusal(archive({{"same", "1"}, {"same", "2"}}));
  EXPECT_NE(twice.find("two parts \"box/same\""), std::string::npos) << twice;
}

TEST_F(Zip, PositionsAtTheEndOf64BitsAreRefused) {
  std::string bytes = many();
  const size_t locator = bytes.rfind("PK\x06\x07");
  bytes.replace(locator + 8, 8, "\xff\xff\xff\xff\xff\xff\xff\x7f");
  write(bytes);
  EXPECT_THROW((void)ZipFile::open(path_), CheckpointError);
}

TEST_F(Zip, ACommentAtTheEndIsAllowed) {
  std::string bytes = sample();
  bytes[bytes.size() - 2] = 6;
  write(bytes + "PK\x05\x06 c");
  EXPECT_EQ(ZipFile::open(path_).read("first"), "hello");
}

TEST_F(Zip, MoreThan65535MembersUseTheWideDirectory) {
  write(many());
  ZipFile file = ZipFile::open(path_);
  const int last = 65'999;
  EXPECT_EQ(file.read("65999"), std::string(reinterpret_cast<const char*>(&last), sizeof(last)));
}

}  // namespace
}  // namespace deepscale
