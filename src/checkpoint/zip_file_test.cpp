#include "checkpoint/zip_file.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

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
  static std::string sample() {
    std::ostringstream out;
    ZipWriter zip(out, "box");
    zip.add("first", "hello", 5);
    zip.add("empty", "", 0);
    zip.add("folder/second", std::string(1000, 'x').data(), 1000);
    zip.finish();
    return out.str();
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

TEST_F(Zip, ChecksumsAreThoseOfZip) {
  EXPECT_EQ(crc32("123456789", 9), 0xCBF43926u);
  EXPECT_EQ(crc32("", 0), 0u);
  EXPECT_EQ(crc32("456789", 6, crc32("123", 3)), 0xCBF43926u);
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
  std::ostringstream out;
  ZipWriter zip(out, "box");
  zip.add("same", "1", 1);
  zip.add("same", "2", 1);
  zip.finish();
  EXPECT_NE(refusal(out.str()).find("two parts \"box/same\""), std::string::npos) << refusal(out.str());
}

TEST_F(Zip, PositionsAtTheEndOf64BitsAreRefused) {
  std::ostringstream out;
  ZipWriter zip(out, "box");
  for (int i = 0; i < 66'000; ++i) zip.add(std::to_string(i), &i, sizeof(i));
  zip.finish();
  std::string bytes = out.str();
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
  std::ostringstream out;
  ZipWriter zip(out, "box");
  for (int i = 0; i < 66'000; ++i) zip.add(std::to_string(i), &i, sizeof(i));
  zip.finish();
  write(out.str());
  ZipFile file = ZipFile::open(path_);
  const int last = 65'999;
  EXPECT_EQ(file.read("65999"), std::string(reinterpret_cast<const char*>(&last), sizeof(last)));
}

}  // namespace
}  // namespace deepscale
