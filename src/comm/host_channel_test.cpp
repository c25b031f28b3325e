#include <gtest/gtest.h>

#include <numeric>

#include "base/error.h"
#include "comm/host_test_support.h"
#include "comm/run_ranks.h"

namespace deepscale {
namespace {

using host_test::Buffer;
using Place = Buffer::Place;

HostOptions small_staging() {
  HostOptions options = test_host_options();
  options.staging_bytes = 16 << 10;
  return options;
}

TEST(HostChannels, MessagesOfEverySizeArriveInOrderSharedAndForeign) {
  run_ranks(
      2,
      [](const std::shared_ptr<HostCommunicator>& comm) {
        for (const Place place : {Place::kShared, Place::kForeign}) {
          for (const int64_t count : {0, 1, 1023, 1024, 1025, 4099, 50021}) {
            const Buffer data(*comm, count * 4, place);
            if (comm->rank() == 0) {
              std::iota(data.as<int32_t>(), data.as<int32_t>() + count, static_cast<int32_t>(count));
              comm->send(data.data(), count, DType::kInt32, 1, "x").wait_released();
            } else {
              comm->recv(data.data(), count, DType::kInt32, 0, "x").wait();
              for (int64_t i = 0; i < count; ++i) ASSERT_EQ(data.as<int32_t>()[i], count + i);
            }
          }
        }
      },
      small_staging());
}

TEST(HostChannels, AManyFoldExchangeInBothDirectionsDoesNotBlock) {
  run_ranks(
      3,
      [](const std::shared_ptr<HostCommunicator>& comm) {
        constexpr int kMessages = 40;  // far more than a channel holds
        constexpr int64_t kCount = 3001;
        const int right = (comm->rank() + 1) % 3;
        const int left = (comm->rank() + 2) % 3;
        std::vector<std::vector<int32_t>> out;
        std::vector<std::vector<int32_t>> in(kMessages, std::vector<int32_t>(kCount));
        std::vector<HostPending> pending;
        for (int i = 0; i < kMessages; ++i) out.emplace_back(kCount, comm->rank() * 1000 + i);
        for (int i = 0; i < kMessages; ++i) pending.push_back(comm->send(out[i].data(), kCount, DType::kInt32, right));
        for (int i = 0; i < kMessages; ++i) pending.push_back(comm->recv(in[i].data(), kCount, DType::kInt32, left));
        for (HostPending& operation : pending) operation.wait_released();
        for (int i = 0; i < kMessages; ++i) ASSERT_EQ(in[i].back(), left * 1000 + i);
      },
      small_staging());
}

TEST(HostChannels, PairsDoNotWaitForEachOtherNorForCollectives) {
  run_ranks(
      3,
      [](const std::shared_ptr<HostCommunicator>& comm) {
        // Rank 2 comes to the collective last, after a message that it gets from rank 0, which is already waiting in
        // it.
        std::vector<float> sum(5000, 1.0f);
        std::vector<float> message(5000, static_cast<float>(comm->rank()));
        if (comm->rank() == 2) comm->recv(message.data(), 5000, DType::kFloat32, 0, "late").wait();
        HostPending send;
        if (comm->rank() == 0) send = comm->send(message.data(), 5000, DType::kFloat32, 2, "late");
        comm->all_reduce(sum.data(), 5000, DType::kFloat32, ReduceOp::kSum).wait();
        EXPECT_EQ(sum[4999], 3.0f);
        EXPECT_EQ(message[4999], comm->rank() == 2 ? 0.0f : static_cast<float>(comm->rank()));
      },
      small_staging());
}

TEST(HostChannels, ATestOfAReceiveIsFalseUntilTheMessageIsThere) {
  run_ranks(2, [](const std::shared_ptr<HostCommunicator>& comm) {
    int32_t value = comm->rank();
    if (comm->rank() == 1) {
      HostPending pending = comm->recv(&value, 1, DType::kInt32, 0);
      EXPECT_FALSE(pending.test());
      comm->barrier().wait();
      while (!pending.test()) continue;
      EXPECT_EQ(value, 0);
    } else {
      comm->barrier().wait();
      comm->send(&value, 1, DType::kInt32, 1).wait();
    }
  });
}

TEST(HostChannels, AMessageOfAnotherSizeIsAnErrorThatNamesBoth) {
  try {
    run_ranks(2, [](const std::shared_ptr<HostCommunicator>& comm) {
      std::vector<float> data(64);
      if (comm->rank() == 0) {
        comm->send(data.data(), 64, DType::kFloat32, 1, "activation").wait();
      } else {
        comm->recv(data.data(), 32, DType::kFloat32, 0, "gradient").wait();
      }
    });
    FAIL();
  } catch (const CommError& error) {
    const std::string text = error.what();
    EXPECT_NE(text.find("recv \"gradient\" (#0, 32 x float32, from 0)"), std::string::npos) << text;
    EXPECT_NE(text.find("send \"activation\") is 64 x float32"), std::string::npos) << text;
  }
}

TEST(HostChannels, BadPeersAreRefused) {
  run_ranks(2, [](const std::shared_ptr<HostCommunicator>& comm) {
    float value = 0;
    EXPECT_THROW(std::ignore = comm->send(&value, 1, DType::kFloat32, comm->rank()), CommError);
    EXPECT_THROW(std::ignore = comm->recv(&value, 1, DType::kFloat32, 2), CommError);
    EXPECT_THROW(std::ignore = comm->broadcast(&value, 1, DType::kFloat32, -1), CommError);
    EXPECT_THROW(std::ignore = comm->all_reduce(&value, -1, DType::kFloat32, ReduceOp::kSum), CommError);
  });
}

}  // namespace
}  // namespace deepscale
