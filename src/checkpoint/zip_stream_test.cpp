#include "checkpoint/zip_stream.h"

#include <gtest/gtest.h>

#include <atomic>
#include <numeric>
#include <vector>

#include "checkpoint/zip_file.h"
#include "deepscale/error.h"
#include "platform/files.h"
#include "platform/resources.h"

namespace deepscale {
namespace {

class ZipStreamTest : public ::testing::Test {
 protected:
  ZipStreamTest() : path_(::testing::TempDir() + "zip_stream_" + std::to_string(this_process_id())) {
    values_.resize(9'000'001);
    std::iota(values_.begin(), values_.end(), 0);
  }
  ~ZipStreamTest() override { remove_file(path_); }

  /// A large member of several parts over many blocks, between small ones.
  [[nodiscard]] std::vector<ZipMember> members() const {
    const auto bytes = static_cast<int64_t>(values_.size() * sizeof(int32_t));
    const char* const data = reinterpret_cast<const char*>(values_.data());
    return {{"first", {part_of(std::string("hello"))}},
            {"large", {part_of(data, 1001), part_of(data + 1001, 0), part_of(data + 1001, bytes - 1001)}},
            {"again", {part_of(data, bytes / 2)}},
            {"empty", {}},
            {"last", {part_of(std::string("bye"))}}};
  }
  [[nodiscard]] std::string large() const {
    return {reinterpret_cast<const char*>(values_.data()), values_.size() * sizeof(int32_t)};
  }

  std::string path_;
  std::vector<int32_t> values_;
};

TEST_F(ZipStreamTest, HoweverManyThreadsWriteItTheFileIsTheSame) {
  FileChecksums first;
  for (const int threads : {1, 2, 4}) {
    ZipStream stream("box", members());
    const FileChecksums sums = write_zip(path_, stream, {.threads = threads});
    if (threads == 1) first = sums;
    EXPECT_EQ(sums.blocks, first.blocks) << threads;
    EXPECT_EQ(checksums_of_file(path_).blocks, first.blocks) << threads;
    ZipFile zip = ZipFile::open(path_);
    EXPECT_TRUE(zip.damaged_members().empty());
    EXPECT_EQ(zip.read("first"), "hello");
    EXPECT_EQ(zip.read("large"), large());
    EXPECT_EQ(zip.read("again"), large().substr(0, large().size() / 2));
    EXPECT_EQ(zip.read("empty"), "");
    EXPECT_EQ(zip.read("last"), "bye");
    EXPECT_EQ(zip.find("again")->begin % 64, 0);
  }
}

TEST_F(ZipStreamTest, PartsOnDemandAreLoadedOnce) {
  std::vector<ZipMember> changed = members();
  std::atomic<int> loads = 0;
  changed[1].parts[2].in_memory = false;
  changed[1].parts[2].data = [&loads, inner = changed[1].parts[2].data] {
    ++loads;
    return inner();
  };
  ZipStream stream("box", std::move(changed));
  write_zip(path_, stream, {.threads = 4});
  EXPECT_EQ(loads, 1);
  EXPECT_EQ(ZipFile::open(path_).read("large"), large());
}

TEST_F(ZipStreamTest, NobodyWaitsForAChecksumThatWillNotCome) {
  std::vector<ZipMember> changed = members();
  changed[1].parts[2].data = []() -> std::shared_ptr<const void> { throw IoError("gone"); };
  ZipStream stream("box", std::move(changed));
  EXPECT_THROW(write_zip(path_, stream, {.threads = 4}), IoError);
}

}  // namespace
}  // namespace deepscale
