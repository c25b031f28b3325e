// The format's rules, every kind of damage, and files as they stand on disk.
#include "checkpoint/safetensors.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <cstring>

#include "deepscale/error.h"
#include "platform/files.h"
#include "platform/resources.h"

namespace deepscale {
namespace {

class Safetensors : public ::testing::Test {
 protected:
  void SetUp() override {
    folder_ = ::testing::TempDir() + "safetensors_test_" + std::to_string(this_process_id());
    make_directories(folder_);
  }
  void TearDown() override {
    for (const auto& name : list_directory(folder_)) remove_file(path(name));
    remove_file(folder_);
  }

  std::string path(const std::string& name) const { return folder_ + "/" + name; }

  std::string write_bytes(const std::string& name, const std::string& bytes) const {
    std::ofstream(native_path(path(name)).c_str(), std::ios::binary) << bytes;
    return path(name);
  }

  static std::string with_header(const std::string& json, const std::string& data) {
    uint64_t length = json.size();
    std::string bytes(8, '\0');
    std::memcpy(bytes.data(), &length, 8);
    return bytes + json + data;
  }

  void expect_error(const std::string& bytes, const std::string& part) const {
    const std::string file = write_bytes("bad.safetensors", bytes);
    try {
      SafetensorsFile::open(file);
      ADD_FAILURE() << "no error; expected " << part;
    } catch (const CheckpointError& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find(file), std::string::npos) << error.what();
    }
  }

  std::string folder_;
};

TEST_F(Safetensors, WhatIsWrittenIsRead) {
  const std::vector<float> matrix = {1, 2, 3, 4, 5, 6};
  const std::vector<uint16_t> half = {7, 8};
  write_safetensors(path("a"),
                    {{"m", DType::kFloat32, {2, 3}, matrix.data()},
                     {"empty", DType::kFloat32, {0, 4}, nullptr},
                     {"h", DType::kBFloat16, {2}, half.data()}},
                    {{"made by", "a test"}});
  EXPECT_FALSE(file_size(path("a.tmp")).has_value());
  SafetensorsFile file = SafetensorsFile::open(path("a"));
  EXPECT_EQ(file.header().metadata.at("made by"), "a test");
  ASSERT_NE(file.find("m"), nullptr);
  EXPECT_EQ(file.find("m")->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(file.find("missing"), nullptr);
  std::vector<float> back(6);
  file.read(*file.find("m"), back.data());
  EXPECT_EQ(back, matrix);
  std::vector<uint16_t> half_back(2);
  file.read(*file.find("h"), half_back.data());
  EXPECT_EQ(half_back, half);
}

TEST_F(Safetensors, AFileCutAtAnyByteIsRefused) {
  const std::vector<float> values = {1, 2, 3};
  write_safetensors(path("whole"), {{"v", DType::kFloat32, {3}, values.data()}});
  std::ifstream in(native_path(path("whole")).c_str(), std::ios::binary);
  const std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  for (size_t length = 0; length < bytes.size(); ++length) {
    SCOPED_TRACE(length);
    const std::string file = write_bytes("cut", bytes.substr(0, length));
    EXPECT_THROW(SafetensorsFile::open(file), CheckpointError);
  }
}

TEST_F(Safetensors, HeadersThatLieAreRefused) {
  const std::string four(4, 'x');
  expect_error(with_header(R"({"v":{"dtype":"F32","shape":[1],"data_offsets":[0,400]}})", four), "not inside the file");
  expect_error(with_header(R"({"v":{"dtype":"F32","shape":[1],"data_offsets":[4,0]}})", four), "not inside the file");
  expect_error(with_header(R"({"v":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", four), "need 8");
  expect_error(with_header(R"({"v":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", four), "impossible shape");
  expect_error(
      with_header(R"({"v":{"dtype":"F32","shape":[4611686018427387904,4611686018427387904],"data_offsets":[0,4]}})",
                  four),
      "impossible shape");
  expect_error(with_header(R"({"v":{"dtype":"F32","shape":[18446744073709551615],"data_offsets":[0,4]}})", four),
               "impossible shape");
  expect_error(with_header(R"({"v":{"dtype":"Q4","shape":[1],"data_offsets":[0,4]}})", four), "dtype \"Q4\"");
  expect_error(with_header(R"({"v":{"dtype":"F32","shape":1,"data_offsets":[0,4]}})", four), "not a list");
  expect_error(with_header(R"({"v":{"shape":[1],"data_offsets":[0,4]}})", four), "needs dtype");
  expect_error(with_header(R"({"v":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})", four), "hole");
  expect_error(with_header(R"({"v":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}})", four), "its tensors have 2");
  expect_error(with_header(R"({"v":{"dtype":"U8","shape":[3],"data_offsets":[0,3]},
                               "w":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}})",
                           four),
               "overlap");
  expect_error(with_header(R"({"v":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},
                               "v":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                           four),
               "damaged");
  expect_error(with_header(R"({"__metadata__": 3})", ""), "__metadata__");
  expect_error(with_header("[1]", ""), "no object");
  expect_error(with_header(std::string(500, '['), ""), "no object");
  expect_error(with_header(R"({"v":{"x":)" + std::string(100000, '['), ""), "deeper than 64");
  expect_error(with_header(R"({"v":{"dtype":"U8","dtype":"U8","shape":[4],"data_offsets":[0,4]}})", four),
               "dtype occurs twice");
  expect_error(std::string("\xff\xff\xff\xff\xff\xff\xff\x7f", 8), "cannot hold the header");
}

TEST_F(Safetensors, HeadersAreStrictJson) {
  const std::string entry = R"("v":{"dtype":"U8","shape":[4],"data_offsets":[0,4]})", four(4, 'x');
  for (const auto& accepted :
       {"{" + entry + "}", " {" + entry + "} \n", R"({"__metadata__":null,)" + entry + "}",
        R"({"__metadata__":{"a":"\u0001"},)" + entry +
            "}",  // a text, though the configuration's reader uses it for itself
        std::string(R"({"v":{"new":[{"x":[1.5]}],"dtype":"U8","shape":[4],"data_offsets":[0,4]}})")}) {
    EXPECT_NO_THROW(SafetensorsFile::open(write_bytes("good.safetensors", with_header(accepted, four)))) << accepted;
  }
  for (const auto& refused :
       {"{/* x */" + entry + "}", "{" + entry + ",}", "# x\n{" + entry + "}", "\xEF\xBB\xBF{" + entry + "}",
        "{" + entry + "}" + std::string(1, '\0') + "more", "{" + entry + "}more", std::string()}) {
    expect_error(with_header(refused, four), "damaged");
  }
  for (const char* number : {"4.0", "-0", "4e0", "Infinity", "\"4\"", "null", "[4]"}) {
    const std::string header = std::string(R"({"v":{"dtype":"U8","shape":[)") + number + R"(],"data_offsets":[0,4]}})";
    EXPECT_THROW(SafetensorsFile::open(write_bytes("bad.safetensors", with_header(header, four))), CheckpointError)
        << number;
  }
}

TEST_F(Safetensors, MessagesStayShortAndPrintable) {
  const std::string name = std::string(100000, 'n') + "\\u0007";
  try {
    (void)parse_safetensors_header("{\"" + name + R"(":{"dtype":"Q4","shape":[1],"data_offsets":[0,4]}})", 4, "f");
    FAIL() << "no error";
  } catch (const CheckpointError& error) {
    EXPECT_LT(std::string(error.what()).size(), 400u);
  }
  std::string sizes = "1";
  for (int i = 0; i < 100000; ++i) sizes += ",1";
  try {
    (void)parse_safetensors_header(R"({"v":{"dtype":"U8","shape":[)" + sizes + R"(,-1],"data_offsets":[0,4]}})", 4,
                                   "f");
    FAIL() << "no error";
  } catch (const CheckpointError& error) {
    EXPECT_LT(std::string(error.what()).size(), 400u);
  }
}

TEST_F(Safetensors, AHundredThousandTensorsAreFoundByName) {
  std::string json = "{";
  constexpr int kCount = 100000;
  for (int i = 0; i < kCount; ++i) {
    json += (i == 0 ? "" : ",") + ("\"t" + std::to_string(i)) + R"(":{"dtype":"U8","shape":[1],"data_offsets":[)" +
            std::to_string(i) + "," + std::to_string(i + 1) + "]}";
  }
  const SafetensorsFile file =
      SafetensorsFile::open(write_bytes("many.safetensors", with_header(json + "}", std::string(kCount, 'x'))));
  for (int i = 0; i < kCount; ++i) ASSERT_EQ(file.find("t" + std::to_string(i))->begin, i);
  EXPECT_EQ(file.find("t"), nullptr);
}

TEST_F(Safetensors, MissingFilesAndFoldersAreNamed) {
  EXPECT_THROW(SafetensorsFile::open(path("none")), CheckpointError);
  EXPECT_THROW(write_safetensors(path("no/such/folder/a"), {}), IoError);
}

}  // namespace
}  // namespace deepscale
