#include "memory/io_calibration.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "deepscale/error.h"
#include "platform/disk_identity.h"
#include "platform/files.h"
#include "platform/resources.h"

namespace deepscale {
namespace {

using io_calibration::cache_file;
using io_calibration::candidates;
using io_calibration::Mode;
using io_calibration::recall;
using io_calibration::remember;
using io_calibration::tuned;

/// A disk whose speeds the test chooses, on a clock of its own.
struct Disk {
  std::function<double(const IoSettings&, bool writing, int slice)> bytes_per_s;
  double slice_s = io_calibration::kSliceSeconds;
  double now_s = 0;
  int slices = 0;

  IoCalibration search() {
    return io_calibration::search(
        [this](const IoSettings& settings, bool writing, double) {
          now_s += slice_s;
          return bytes_per_s(settings, writing, slices++);
        },
        [this] { return now_s; });
  }
};

TEST(IoSearch, TakesTheFastestOfAllCandidates) {
  for (const IoSettings& fastest : candidates()) {
    Disk disk{[&](const IoSettings& settings, bool, int) { return settings == fastest ? 2e9 : 1e9; }};
    const IoCalibration found = disk.search();
    EXPECT_EQ(found.settings, fastest);
    EXPECT_DOUBLE_EQ(found.read_bytes_per_s, 2e9);
    EXPECT_DOUBLE_EQ(found.write_bytes_per_s, 2e9);
    EXPECT_LE(disk.now_s, io_calibration::kLimitSeconds);
  }
}

TEST(IoSearch, CountsBothDirections) {
  const IoSettings reader = candidates()[2];
  Disk disk{[&](const IoSettings& settings, bool writing, int) {
    if (settings != reader) return 1e9;
    return writing ? 0.1e9 : 3e9;
  }};
  EXPECT_EQ(disk.search().settings, candidates()[0]);
}

TEST(IoSearch, KeepsTheDefaultWhenAnotherIsHardlyFasterOrWasSoOnce) {
  const IoSettings rival = candidates()[3];
  Disk hardly{[&](const IoSettings& settings, bool, int) { return settings == rival ? 1.03e9 : 1e9; }};
  EXPECT_EQ(hardly.search().settings, candidates()[0]);
  Disk once{[&](const IoSettings& settings, bool, int slice) {
    if (settings != rival) return 1e9;
    return slice < 2 * static_cast<int>(candidates().size()) ? 1.2e9 : 0.9e9;
  }};
  EXPECT_EQ(once.search().settings, candidates()[0]);
}

TEST(IoSearch, EndsInTimeWhenEveryMeasurementTakesLong) {
  Disk disk{[](const IoSettings&, bool, int) { return 1e9; }, /*slice_s=*/0.1};
  EXPECT_EQ(disk.search().settings, candidates()[0]);
  EXPECT_LE(disk.now_s, io_calibration::kLimitSeconds);
}

class IoMemory : public ::testing::Test {
 protected:
  void SetUp() override {
    // In the current folder: the system's temporary one may be in memory, without direct access.
    folder_ = "io_calibration_test_" + std::to_string(this_process_id());
    make_directories(folder_);
    known_.settings = candidates()[2];
    known_.read_bytes_per_s = 3e9;
    known_.write_bytes_per_s = 2e9;
  }
  void TearDown() override {
    for (const std::string& name : list_directory(folder_)) remove_file(folder_ + "/" + name);
    remove_file(folder_);
  }
  /// The remembered file's text, with one part replaced.
  void edit(const std::string& from, const std::string& to) {
    ASSERT_TRUE(remember(folder_, "disk", known_));
    const std::string path = cache_file(folder_, "disk");
    std::string text;
    std::getline(std::ifstream(path), text, '\0');
    const size_t at = text.find(from);
    ASSERT_NE(at, std::string::npos) << text;
    std::ofstream(path) << text.replace(at, from.size(), to);
  }

  std::string folder_;
  IoCalibration known_;
};

TEST_F(IoMemory, ReturnsWhatWasRememberedForTheSameDiskOnly) {
  EXPECT_FALSE(recall(folder_, "disk").has_value());
  ASSERT_TRUE(remember(folder_ + "/below", "disk", known_));  // makes the folder
  const auto found = recall(folder_ + "/below", "disk");
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->settings, known_.settings);
  EXPECT_EQ(found->read_bytes_per_s, 3e9);
  EXPECT_EQ(found->write_bytes_per_s, 2e9);
  EXPECT_TRUE(found->remembered);
  EXPECT_FALSE(recall(folder_ + "/below", "other disk").has_value());
  EXPECT_EQ(list_directory(folder_ + "/below").size(), 1u);  // no working files
  remove_file(cache_file(folder_ + "/below", "disk"));
  remove_file(folder_ + "/below");
}

TEST_F(IoMemory, IgnoresAndReplacesWhatIsDamagedForeignOrOld) {
  const std::string path = cache_file(folder_, "disk");
  for (const std::string text : {"", "{", "[]", "null", "{\"version\": 1}", "\xff\xfe\x00", "{\"depth\": 8}"}) {
    std::ofstream(path) << text;
    EXPECT_FALSE(recall(folder_, "disk").has_value()) << text;
  }
  const std::vector<std::pair<std::string, std::string>> edits = {
      {"\"version\": \"", "\"version\": \"0."},      // another version
      {"\"disk\": \"disk\"", "\"disk\": \"ksid\""},  // another disk of the same hash
      {"\"depth\": 32", "\"depth\": 1000000"},
      {"\"depth\": 32", "\"depth\": \"32\""},
      {"\"block_bytes\": 262144", "\"block_bytes\": 1000"},
      {"\"read_bytes_per_s\"", "\"read\""},
  };
  for (const auto& [from, to] : edits) {
    edit(from, to);
    EXPECT_FALSE(recall(folder_, "disk").has_value()) << to;
  }
  ASSERT_TRUE(remember(folder_, "disk", known_));
  EXPECT_TRUE(recall(folder_, "disk").has_value());
  EXPECT_EQ(list_directory(folder_).size(), 1u);
}

TEST_F(IoMemory, DoesWithoutAPlaceToRemember) {
  std::ofstream(folder_ + "/file") << "x";
  EXPECT_FALSE(remember(folder_ + "/file", "disk", known_));
  EXPECT_FALSE(remember(folder_ + "/file/below", "disk", known_));
  EXPECT_FALSE(recall(folder_ + "/file", "disk").has_value());
}

TEST_F(IoMemory, MeasuresARealDiskInTime) {
  const IoCalibration found = io_calibration::measure_folder(folder_);
  EXPECT_TRUE(std::ranges::find(candidates(), found.settings) != candidates().end());
  EXPECT_GT(found.read_bytes_per_s, 0);
  EXPECT_GT(found.write_bytes_per_s, 0);
  EXPECT_GT(found.seconds, 0);
  EXPECT_LT(found.seconds, 10);  // the limit holds for a disk that answers at once, which a busy machine's does not
  EXPECT_TRUE(list_directory(folder_).empty());
  EXPECT_THROW((void)io_calibration::measure_folder(folder_ + "/missing"), IoError);
}

TEST_F(IoMemory, OneCallMeasuresAndTheNextOneRemembers) {
  const std::string cache = folder_ + "/cache";
  const IoCalibration first = tuned(folder_, Mode::kOn, cache);
  EXPECT_FALSE(first.remembered);
  EXPECT_GT(first.seconds, 0);
  const IoCalibration second = tuned(folder_, Mode::kOn, cache);
  EXPECT_TRUE(second.remembered);
  EXPECT_EQ(second.seconds, 0);
  EXPECT_EQ(first.settings, second.settings);
  EXPECT_EQ(first.reason, second.reason);
  EXPECT_FALSE(tuned(folder_, Mode::kAgain, cache).remembered);
  EXPECT_FALSE(tuned(folder_, Mode::kOn, std::nullopt).remembered);
  for (const std::string& name : list_directory(cache)) remove_file(cache + "/" + name);
  remove_file(cache);
}

TEST_F(IoMemory, OfManyAtTheSameTimeOneMeasures) {
  const std::string cache = folder_ + "/cache";
  std::vector<IoCalibration> found(4);
  std::vector<std::thread> ranks;
  for (IoCalibration& mine : found) ranks.emplace_back([&] { mine = tuned(folder_, Mode::kOn, cache); });
  for (std::thread& rank : ranks) rank.join();
  EXPECT_EQ(std::ranges::count_if(found, [](const IoCalibration& one) { return one.remembered; }), 3);
  for (const IoCalibration& one : found) EXPECT_EQ(one.settings, found[0].settings);
  for (const std::string& name : list_directory(cache)) remove_file(cache + "/" + name);
  remove_file(cache);
}

TEST(IoQueueOptions, AreTheNearestThatAQueueAccepts) {
  EXPECT_EQ(queue_options_near(8, 1 << 20).depth, 8);
  EXPECT_EQ(queue_options_near(8, 1 << 20).block_bytes, 1 << 20);
  EXPECT_EQ(queue_options_near(1, 1).block_bytes, 4096);
  EXPECT_EQ(queue_options_near(1, 4097).block_bytes, 8192);
  EXPECT_EQ(queue_options_near(INT64_MAX, INT64_MAX).depth, 4096);
  EXPECT_EQ(queue_options_near(INT64_MAX, INT64_MAX).block_bytes, 1 << 30);
  const AsyncFileQueue queue(queue_options_near(INT64_MAX, INT64_MAX));
}

TEST_F(IoMemory, TheDefaultHoldsWhereNothingCanOrShallBeMeasured) {
  const IoCalibration off = tuned(folder_, Mode::kOff, folder_ + "/cache");
  EXPECT_EQ(off.settings, IoSettings());
  EXPECT_EQ(off.seconds, 0);
  const IoCalibration none = tuned(folder_ + "/missing", Mode::kOn, folder_ + "/cache");
  EXPECT_EQ(none.settings, IoSettings());
  EXPECT_NE(none.reason.find("missing"), std::string::npos) << none.reason;
  EXPECT_TRUE(list_directory(folder_).empty());
  EXPECT_THROW((void)io_calibration::parse_mode("maybe"), ConfigError);
  EXPECT_EQ(io_calibration::parse_mode("again"), Mode::kAgain);
}

TEST(DiskIdentity, IsTheSameWithinAFileSystemAndEmptyForNothing) {
  const std::string here = disk_identity(".");
  EXPECT_FALSE(here.empty());
  const std::string folder = "disk_identity_test_" + std::to_string(this_process_id());
  make_directories(folder);
  EXPECT_EQ(disk_identity(folder), here);
  remove_file(folder);
  EXPECT_EQ(disk_identity(folder), "");
}

}  // namespace
}  // namespace deepscale
