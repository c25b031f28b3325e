#include "platform/async_file.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <random>
#include <thread>
#include <vector>

#include "deepscale/error.h"
#include "platform/disk_space.h"
#include "platform/files.h"
#include "platform/private_memory.h"
#include "platform/resources.h"

namespace deepscale {
namespace {

std::vector<AsyncEngine> engines() {
  std::vector<AsyncEngine> usable;
  for (const AsyncEngine engine : {AsyncEngine::kIoUring, AsyncEngine::kThreads, AsyncEngine::kCompletionPort}) {
    try {
      usable.push_back(choose_async_engine(engine).engine);
    } catch (const ConfigError&) {
      // not on this system
    }
  }
  return usable;
}

/// What IoError says when `action` fails.
template <typename Action>
std::string failure_of(Action action) {
  try {
    action();
  } catch (const IoError& error) {
    return error.what();
  }
  return "";
}

int descriptor_of(std::FILE* stream) {
#ifdef _WIN32
  return _fileno(stream);
#else
  return fileno(stream);
#endif
}

std::vector<char> pattern(size_t bytes, uint32_t seed) {
  std::mt19937 generator(seed);
  std::vector<char> data(bytes);
  for (char& byte : data) byte = static_cast<char>(generator());
  return data;
}

class AsyncFiles : public ::testing::TestWithParam<AsyncEngine> {
 protected:
  void SetUp() override {
    // Not std::filesystem::temp_directory_path(): that may be a file system in memory, without direct access.
    const auto folder = std::filesystem::current_path() / ("async_file_test_" + std::to_string(this_process_id()));
    std::filesystem::create_directories(folder);
    folder_ = folder.string();
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  [[nodiscard]] AsyncFileOptions options(int depth, int64_t block_bytes) const {
    return {.depth = depth, .block_bytes = block_bytes, .engine = GetParam()};
  }
  [[nodiscard]] std::string path(const std::string& name = "file") const { return folder_ + "/" + name; }

  std::string folder_;
};

INSTANTIATE_TEST_SUITE_P(Engines, AsyncFiles, ::testing::ValuesIn(engines()),
                         [](const auto& info) { return std::string(async_engine_name(info.param)); });

TEST_P(AsyncFiles, LargeTransfersComeBackUnchanged) {
  constexpr int64_t kBytes = 9 * 1024 * 1024 + 4096;
  const auto expected = pattern(kBytes, 1);
  for (const FileCaching caching : {FileCaching::kDirect, FileCaching::kBuffered}) {
    const AsyncFileQueue queue(options(/*depth=*/4, /*block_bytes=*/256 * 1024));
    EXPECT_EQ(queue.engine().engine, GetParam());
    const AsyncFile file = queue.open(path(), FileMode::kCreate, caching);
    EXPECT_EQ(file.direct(), caching == FileCaching::kDirect);  // build folders stand on file systems that can
    EXPECT_EQ(file.direct(), file.alignment() > 1);
    file.preallocate(kBytes);
    EXPECT_EQ(file.bytes(), kBytes);
    PrivateMemory memory(kBytes);
    std::memcpy(memory.data(), expected.data(), kBytes);
    file.write(0, memory.data(), kBytes).wait();
    file.sync();
    std::memset(memory.data(), 0, kBytes);
    FileTransfer reading = file.read(0, memory.data(), kBytes);
    reading.wait();
    EXPECT_TRUE(reading.done());
    reading.wait();  // again: at once
    EXPECT_EQ(std::memcmp(memory.data(), expected.data(), kBytes), 0);
  }
}

TEST_P(AsyncFiles, AnyOffsetLengthAndAddressIsCorrect) {
  constexpr int64_t kBytes = 300 * 1000;
  std::vector<char> model(kBytes, 0);
  const AsyncFileQueue queue(options(/*depth=*/3, /*block_bytes=*/16 * 1024));
  const AsyncFile file = queue.open(path(), FileMode::kCreate, FileCaching::kDirect);
  file.truncate(kBytes);
  PrivateMemory memory(kBytes + 8192);
  std::mt19937 generator(7);
  const auto pick = [&](int64_t limit, int64_t step) {
    return static_cast<int64_t>(generator()) % limit / step * step;
  };
  const int64_t steps[] = {1, 64, 512, 4096};
  for (int round = 0; round < 200; ++round) {
    const int64_t offset = pick(kBytes, steps[generator() % 4]);
    const int64_t bytes = std::min(pick(60'000, steps[generator() % 4]), kBytes - offset);
    char* const data = memory.data() + pick(8192, steps[generator() % 4]);
    if (round % 2 == 0) {
      const auto fresh = pattern(static_cast<size_t>(bytes), generator());
      std::copy(fresh.begin(), fresh.end(), data);
      std::copy(fresh.begin(), fresh.end(), model.begin() + offset);
      file.write(offset, data, bytes).wait();
    } else {
      std::memset(data, 0x55, static_cast<size_t>(bytes));
      file.read(offset, data, bytes).wait();
      ASSERT_TRUE(std::equal(data, data + bytes, model.begin() + offset)) << offset << " " << bytes;
    }
  }
  EXPECT_EQ(file.bytes(), kBytes);
  const AsyncFile again = queue.open(path(), FileMode::kRead, FileCaching::kBuffered);
  again.read(0, memory.data(), kBytes).wait();
  EXPECT_TRUE(std::equal(model.begin(), model.end(), memory.data()));
}

TEST_P(AsyncFiles, AnUnalignedTailDoesNotDamageItsNeighbours) {
  const AsyncFileQueue queue(options(/*depth=*/8, /*block_bytes=*/8192));
  const AsyncFile file = queue.open(path(), FileMode::kCreate, FileCaching::kDirect);
  constexpr int64_t kPart = 4096 * 2 + 100;
  constexpr int kParts = 20;
  std::vector<PrivateMemory> parts;
  std::vector<FileTransfer> transfers;
  for (int i = 0; i < kParts; ++i) {
    parts.emplace_back(kPart);
    std::memset(parts.back().data(), 'a' + i, kPart);
    transfers.push_back(file.write(i * kPart, parts.back().data(), kPart));
  }
  for (FileTransfer& transfer : transfers) transfer.wait();
  ASSERT_EQ(file.bytes(), kParts * kPart);
  PrivateMemory all(kParts * kPart);
  file.read(0, all.data(), kParts * kPart).wait();
  for (int64_t i = 0; i < kParts * kPart; ++i) ASSERT_EQ(all.data()[i], 'a' + i / kPart) << i;
}

TEST_P(AsyncFiles, ReadingPastTheEndNamesFileOffsetAndBytes) {
  const AsyncFileQueue queue(options(/*depth=*/4, /*block_bytes=*/4096));
  const AsyncFile file = queue.open(path("short"), FileMode::kCreate, FileCaching::kDirect);
  PrivateMemory memory(65536);
  file.write(0, memory.data(), 10'000).wait();
  const std::string message = failure_of([&] { file.read(4096, memory.data(), 20'000).wait(); });
  EXPECT_NE(message.find("short"), std::string::npos) << message;
  EXPECT_NE(message.find("20000 bytes at offset 4096"), std::string::npos) << message;
  EXPECT_NE(message.find("the file ends at byte "), std::string::npos) << message;
  file.read(4096, memory.data(), 10'000 - 4096).wait();  // the queue goes on working
}

TEST_P(AsyncFiles, LengthsAreGivenTakenAndReported) {
  const AsyncFileQueue queue(options(/*depth=*/2, /*block_bytes=*/4096));
  const AsyncFile file = queue.open(path(), FileMode::kReadWrite, FileCaching::kDirect);
  EXPECT_EQ(file.bytes(), 0);
  file.preallocate(100'000);
  EXPECT_EQ(file.bytes(), 100'000);
  file.preallocate(50'000);
  EXPECT_EQ(file.bytes(), 100'000);
  file.truncate(5'000);
  EXPECT_EQ(file.bytes(), 5'000);
  file.truncate(20'000);
  std::vector<char> zeros(20'000, 1);
  file.read(0, zeros.data(), 20'000).wait();
  EXPECT_EQ(zeros, std::vector<char>(20'000, 0));
  file.write(0, nullptr, 0).wait();
  EXPECT_EQ(queue.open(path(), FileMode::kCreate, FileCaching::kDirect).bytes(), 0);
}

TEST_P(AsyncFiles, MoreThanTheDiskHoldsCannotBeReserved) {
  const auto space = disk_space(folder_);
  ASSERT_TRUE(space.has_value());
  const AsyncFileQueue queue(options(/*depth=*/2, /*block_bytes=*/4096));
  const AsyncFile file = queue.open(path(), FileMode::kCreate, FileCaching::kDirect);
  const std::string message = failure_of([&] { file.preallocate(space->total_bytes * 2); });
  EXPECT_NE(message.find("file"), std::string::npos) << message;
  EXPECT_NE(message.find("bytes are free there"), std::string::npos) << message;
}

TEST_P(AsyncFiles, ManyThreadsShareAQueueAndAFile) {
  const AsyncFileQueue queue(options(/*depth=*/4, /*block_bytes=*/4096));
  const AsyncFile file = queue.open(path(), FileMode::kCreate, FileCaching::kDirect);
  constexpr int64_t kPart = 64 * 1024;
  std::vector<std::thread> threads;
  std::atomic<int> wrong = 0;
  for (int rank = 0; rank < 4; ++rank) {
    threads.emplace_back([&, rank] {
      PrivateMemory memory(kPart);
      for (int round = 0; round < 20; ++round) {
        std::memset(memory.data(), rank * 20 + round, kPart);
        file.write(rank * kPart, memory.data(), kPart).wait();
        std::memset(memory.data(), 0xff, kPart);
        file.read(rank * kPart, memory.data(), kPart).wait();
        for (int64_t i = 0; i < kPart; ++i) wrong += memory.data()[i] != static_cast<char>(rank * 20 + round);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST_P(AsyncFiles, NothingIsLeftInABufferAfterItsTransferIsDropped) {
  constexpr int64_t kBytes = 4 << 20;
  const AsyncFileQueue queue(options(/*depth=*/2, /*block_bytes=*/4096));
  const AsyncFile file = queue.open(path(), FileMode::kCreate, FileCaching::kDirect);
  file.preallocate(kBytes);
  PrivateMemory memory(kBytes);
  for (int round = 0; round < 20; ++round) {
    { const FileTransfer dropped = file.read(0, memory.data(), kBytes); }
    std::memset(memory.data(), 0x77, kBytes);  // would be overwritten by a block that is still under way
    for (int64_t i = 0; i < kBytes; i += 512) ASSERT_EQ(memory.data()[i], 0x77);
  }
  FileTransfer cancelled = file.read(0, memory.data(), kBytes);
  cancelled.cancel();
  EXPECT_TRUE(cancelled.done());
  const std::string message = failure_of([&] { cancelled.wait(); });
  if (!message.empty()) {
    EXPECT_NE(message.find("was cancelled"), std::string::npos) << message;
  }
}

TEST_P(AsyncFiles, AQueueThatIsClosedEndsItsTransfers) {
  constexpr int64_t kBytes = 8 << 20;
  auto queue = std::make_unique<AsyncFileQueue>(options(/*depth=*/1, /*block_bytes=*/4096));
  const AsyncFile file = queue->open(path(), FileMode::kCreate, FileCaching::kDirect);
  file.preallocate(kBytes);
  PrivateMemory memory(kBytes);
  FileTransfer first = file.read(0, memory.data(), kBytes);
  FileTransfer second = file.read(0, memory.data(), kBytes);
  queue.reset();
  EXPECT_TRUE(first.done());
  EXPECT_TRUE(second.done());
  const std::string message = failure_of([&] { second.wait(); });
  EXPECT_NE(message.find("the queue was closed"), std::string::npos) << message;
  EXPECT_NE(failure_of([&] { file.read(0, memory.data(), 1).wait(); }).find("its queue was closed"), std::string::npos);
}

TEST_P(AsyncFiles, RegisteredBuffersMoveTheSameBytes) {
  constexpr int64_t kBytes = 1 << 20;
  const AsyncFileQueue queue(options(/*depth=*/4, /*block_bytes=*/64 * 1024));
  const AsyncFile file = queue.open(path(), FileMode::kCreate, FileCaching::kDirect);
  const auto expected = pattern(kBytes, 3);
  PrivateMemory memory(kBytes);
  for (int round = 0; round < 3; ++round) {  // registered and ended several times
    const BufferRegistration registration = queue.register_buffer(memory.data(), kBytes);
    if (GetParam() == AsyncEngine::kIoUring) {
      EXPECT_TRUE(registration.active()) << registration.reason();
    } else {
      EXPECT_FALSE(registration.active());
    }
    std::memcpy(memory.data(), expected.data(), kBytes);
    file.write(100, memory.data() + 100, kBytes - 100).wait();
    std::memset(memory.data(), 0, kBytes);
    file.read(100, memory.data() + 100, kBytes - 100).wait();
    EXPECT_EQ(std::memcmp(memory.data() + 100, expected.data() + 100, kBytes - 100), 0);
  }
}

TEST_P(AsyncFiles, ManyOpenFilesWork) {
  const AsyncFileQueue queue(options(/*depth=*/4, /*block_bytes=*/4096));
  std::vector<AsyncFile> files;
  for (int i = 0; i < 150; ++i)
    files.push_back(queue.open(path(std::to_string(i)), FileMode::kCreate, FileCaching::kDirect));
  PrivateMemory memory(4096);
  for (int i = 0; i < 150; ++i) {
    std::memset(memory.data(), i, 4096);
    files[static_cast<size_t>(i)].write(0, memory.data(), 4096).wait();
  }
  for (int i = 149; i >= 0; --i) {
    files.back().read(0, memory.data(), 4096).wait();
    EXPECT_EQ(memory.data()[4095], static_cast<char>(i));
    files.pop_back();
  }
}

TEST_P(AsyncFiles, MistakesAreRefused) {
  const AsyncFileQueue queue(options(/*depth=*/1, /*block_bytes=*/4096));
  EXPECT_NE(failure_of([&] { (void)queue.open(path("none"), FileMode::kRead, FileCaching::kDirect); }).find("none"),
            std::string::npos);
  (void)queue.open(path("read_only"), FileMode::kCreate, FileCaching::kBuffered);
  const AsyncFile file = queue.open(path("read_only"), FileMode::kRead, FileCaching::kDirect);
  char byte = 0;
  EXPECT_NE(failure_of([&] { file.write(0, &byte, 1).wait(); }).find("reading only"), std::string::npos);
  EXPECT_THROW((void)file.read(-1, &byte, 1), IoError);
  EXPECT_THROW((void)file.read(0, &byte, -1), IoError);
  EXPECT_THROW((void)file.read(0, nullptr, 1), IoError);
  EXPECT_THROW(AsyncFileQueue({.depth = 0}), ConfigError);
  EXPECT_THROW(AsyncFileQueue({.depth = 4097}), ConfigError);
  EXPECT_THROW(AsyncFileQueue({.block_bytes = 5000}), ConfigError);
}

TEST_P(AsyncFiles, TemporaryFilesWorkLikeOthersAndLeaveNothing) {
  constexpr int64_t kBytes = (2 << 20) + 100;
  const auto expected = pattern(kBytes, 5);
  std::vector<char> data(kBytes);
  for (const FileCaching caching : {FileCaching::kDirect, FileCaching::kBuffered}) {
    const AsyncFileQueue queue(options(/*depth=*/4, /*block_bytes=*/64 * 1024));
    const AsyncFile file = queue.open_temporary(folder_, caching);
    const AsyncFile other = queue.open_temporary(folder_, caching);
    EXPECT_EQ(file.direct(), caching == FileCaching::kDirect);
    file.preallocate(kBytes);
    PrivateMemory memory(kBytes);
    std::memcpy(memory.data(), expected.data(), kBytes);
    file.write(0, memory.data(), kBytes).wait();
    other.write(0, "other", 5).wait();
    std::memset(memory.data(), 0, kBytes);
    file.read(0, memory.data(), kBytes).wait();
    EXPECT_EQ(std::memcmp(memory.data(), expected.data(), kBytes), 0);
    EXPECT_EQ(other.bytes(), 5);
    const std::string message = failure_of([&] { other.read(0, data.data(), 6).wait(); });
    EXPECT_NE(message.find(folder_), std::string::npos) << message;
  }
  EXPECT_TRUE(list_directory(folder_).empty());
}

TEST_P(AsyncFiles, TemporaryFilesNeedAFolder) {
  const AsyncFileQueue queue(options(/*depth=*/1, /*block_bytes=*/4096));
  (void)queue.open(path("a_file"), FileMode::kCreate, FileCaching::kBuffered);
  for (const std::string& folder : {path("missing"), path("a_file")}) {
    const std::string message = failure_of([&] { (void)queue.open_temporary(folder, FileCaching::kDirect); });
    EXPECT_NE(message.find("cannot make a temporary file in " + folder + ": "), std::string::npos) << message;
    EXPECT_NE(message.find("can be written"), std::string::npos) << message;
  }
  const auto space = disk_space(folder_);
  ASSERT_TRUE(space.has_value());
  const AsyncFile file = queue.open_temporary(folder_, FileCaching::kDirect);
  const std::string message = failure_of([&] { file.preallocate(space->total_bytes * 2); });
  EXPECT_NE(message.find("bytes are free there"), std::string::npos) << message;
  EXPECT_EQ(message.find(" (0 bytes are free"), std::string::npos) << message;  // the label still leads to the disk
}

TEST_P(AsyncFiles, AnOpenDescriptorLeadsToItsFile) {
  constexpr int64_t kBytes = 100'000;
  const auto expected = pattern(kBytes, 11);
  PrivateMemory memory(kBytes);
  const AsyncFileQueue queue(options(/*depth=*/4, /*block_bytes=*/16 * 1024));
  std::FILE* const stream = std::fopen(path().c_str(), "w+b");
  ASSERT_NE(stream, nullptr);
  const AsyncFile file = queue.open_descriptor(descriptor_of(stream), FileCaching::kDirect);
  EXPECT_TRUE(file.direct());
  EXPECT_NE(file.path().find("file"), std::string::npos) << file.path();
  std::fclose(stream);
  std::memcpy(memory.data(), expected.data(), kBytes);
  file.write(0, memory.data(), kBytes).wait();
  std::FILE* const reader = std::fopen(path().c_str(), "rb");
  const AsyncFile same = queue.open_descriptor(descriptor_of(reader), FileCaching::kBuffered);
  std::memset(memory.data(), 0, kBytes);
  same.read(100, memory.data() + 100, kBytes - 100).wait();
  EXPECT_EQ(std::memcmp(memory.data() + 100, expected.data() + 100, kBytes - 100), 0);
  EXPECT_NE(failure_of([&] { same.write(0, memory.data(), 1).wait(); }).find("reading only"), std::string::npos);
  const int closed = descriptor_of(reader);
  std::fclose(reader);
  for (const int descriptor : {closed, -1}) {
    const std::string message = failure_of([&] { (void)queue.open_descriptor(descriptor, FileCaching::kDirect); });
    EXPECT_NE(message.find("descriptor " + std::to_string(descriptor)), std::string::npos) << message;
  }
}

TEST(DiskSpace, IsFoundForFoldersFilesAndPathsToBe) {
  const auto here = disk_space(std::filesystem::current_path().string());
  ASSERT_TRUE(here.has_value());
  EXPECT_GT(here->total_bytes, 0);
  EXPECT_LE(here->available_bytes, here->total_bytes);
  const auto below = disk_space((std::filesystem::current_path() / "no" / "such" / "folder").string());
  ASSERT_TRUE(below.has_value());
  EXPECT_EQ(below->total_bytes, here->total_bytes);
  const auto relative = disk_space("no_such_file");
  ASSERT_TRUE(relative.has_value());
  EXPECT_EQ(relative->total_bytes, here->total_bytes);
}

}  // namespace
}  // namespace deepscale
