// Bandwidth of asynchronous files: passes over a file that exists and is full, past the page cache.
//   async_file_bench FILE [--bytes N] [--mode read|write] [--depth D] [--block B] [--buffer N] [--passes P]
//                    [--engine automatic|io_uring|threads|completion_port] [--registered 0|1]
// A buffer smaller than the file is used again and again, in halves: one is under way while the other is waited for.
// The file is made and written once when it is missing or too short. One line per pass: GB/s (1e9 bytes).
// bench/aio.py puts fio beside it.
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "deepscale/error.h"
#include "platform/async_file.h"
#include "platform/private_memory.h"

namespace deepscale {
namespace {

struct Settings {
  std::string path;
  int64_t bytes = int64_t{1} << 30;
  bool writing = false;
  AsyncFileOptions options;
  int64_t buffer_bytes = int64_t{1} << 28;
  int passes = 3;
  bool registered = false;
};

AsyncEngine engine_named(const std::string& name) {
  for (const AsyncEngine engine : {AsyncEngine::kIoUring, AsyncEngine::kThreads, AsyncEngine::kCompletionPort}) {
    if (name == async_engine_name(engine)) return engine;
  }
  return AsyncEngine::kAutomatic;
}

Settings parse(int argc, char** argv) {
  Settings settings;
  settings.path = argv[1];
  for (int i = 2; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const char* const value = argv[i + 1];
    if (name == "--bytes") settings.bytes = std::atoll(value);
    if (name == "--mode") settings.writing = std::string(value) == "write";
    if (name == "--depth") settings.options.depth = std::atoi(value);
    if (name == "--block") settings.options.block_bytes = std::atoll(value);
    if (name == "--buffer") settings.buffer_bytes = std::atoll(value);
    if (name == "--passes") settings.passes = std::atoi(value);
    if (name == "--engine") settings.options.engine = engine_named(value);
    if (name == "--registered") settings.registered = std::atoi(value) != 0;
  }
  settings.buffer_bytes = std::min(settings.buffer_bytes, settings.bytes);
  return settings;
}

double pass(const Settings& settings, const AsyncFile& file, bool writing, char* data) {
  const auto start = std::chrono::steady_clock::now();
  const int64_t half = settings.buffer_bytes / 2;
  std::optional<FileTransfer> transfers[2];
  for (int64_t offset = 0; offset < settings.bytes; offset += half) {
    const auto side = static_cast<size_t>(offset / half % 2);
    if (transfers[side]) transfers[side]->wait();
    const int64_t bytes = std::min(half, settings.bytes - offset);
    char* const here = data + static_cast<int64_t>(side) * half;
    transfers[side] = writing ? file.write(offset, here, bytes) : file.read(offset, here, bytes);
  }
  for (auto& transfer : transfers) {
    if (transfer) transfer->wait();
  }
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  return static_cast<double>(settings.bytes) / seconds.count() / 1e9;
}

int run(const Settings& settings) {
  const AsyncFileQueue queue(settings.options);
  const AsyncFile file = queue.open(settings.path, FileMode::kReadWrite, FileCaching::kDirect);
  PrivateMemory memory(settings.buffer_bytes);
  std::memset(memory.data(), 0x5a, static_cast<size_t>(settings.buffer_bytes));
  std::optional<BufferRegistration> registration;
  if (settings.registered) registration = queue.register_buffer(memory.data(), settings.buffer_bytes);
  std::printf("engine %s, direct %d, depth %d, block %lld, buffer %lld%s\n", async_engine_name(queue.engine().engine),
              file.direct() ? 1 : 0, settings.options.depth, static_cast<long long>(settings.options.block_bytes),
              static_cast<long long>(settings.buffer_bytes),
              registration && registration->active() ? ", registered" : "");
  if (file.bytes() < settings.bytes) {
    file.preallocate(settings.bytes);
    (void)pass(settings, file, /*writing=*/true, memory.data());
  }
  for (int i = 0; i < settings.passes; ++i) {
    std::printf("%.4f\n", pass(settings, file, settings.writing, memory.data()));
    std::fflush(stdout);
  }
  return 0;
}

}  // namespace
}  // namespace deepscale

int main(int argc, char** argv) {
  if (argc < 2) {
    std::fprintf(stderr, "usage: async_file_bench FILE [options]\n");
    return 2;
  }
  try {
    return deepscale::run(deepscale::parse(argc, argv));
  } catch (const deepscale::Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
