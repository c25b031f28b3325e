// Manifests that were made to harm who reads them. What a careless change does is in tag_folder_test.cpp.
#include "checkpoint/manifest.h"

#include <gtest/gtest.h>

#include <ctime>

#include "base/error.h"
#include "config/json_text.h"

namespace deepscale {
namespace {

using config::Json;

Json good() {
  return config::parse_json_text(R"({"format": "deepscale.checkpoint", "version": 2, "layout": "native", "tag": "t",
    "files": [{"name": "f", "bytes": 100, "block_bytes": 65536, "xxh3": "0123456789abcdef"},
              {"name": "g", "bytes": 0, "block_bytes": 1048576, "xxh3": ""}],
    "tensors": [{"name": "a", "dtype": "float32", "shape": [2, 4], "slices": [[0, 8, 0, 5], [0, 28, 5, 3]]},
                {"name": "b", "dtype": "int8", "shape": [0, 4611686018427387904], "slices": []}], "info": {}})");
}

std::string signed_text(Json json) {
  json["checksum"] = checksum_text(checksum_of(json.dump()));
  return json.dump();
}

/// What is said about it; empty when it is taken.
std::string said_about(const Json& json) {
  try {
    (void)parse_manifest(signed_text(json), "m");
    return "";
  } catch (const CheckpointError& error) {
    EXPECT_LT(std::string(error.what()).size(), 700u);
    return error.what();
  }
}

TEST(ManifestTest, AManifestIsRead) {
  EXPECT_EQ(said_about(good()), "");
}

TEST(ManifestTest, EveryBitIsCoveredByTheChecksumHoweverTheTextIsLaidOut) {
  const std::string written = signed_text(good());
  EXPECT_NO_THROW((void)parse_manifest(config::parse_json_text(written).dump(2), "m"));
  for (const std::string& text : {written, config::parse_json_text(written).dump(2)}) {
    for (size_t i = 0; i < text.size(); ++i) {
      for (int bit = 0; bit < 8; ++bit) {
        std::string damaged = text;
        damaged[i] = static_cast<char>(damaged[i] ^ 1 << bit);
        try {
          const Manifest found = parse_manifest(damaged, "m");
          EXPECT_EQ(manifest_text(found), manifest_text(parse_manifest(text, "m"))) << "byte " << i << " bit " << bit;
        } catch (const CheckpointError&) {
        }
      }
    }
  }
}

TEST(ManifestTest, AnythingOfAnotherKindIsRefusedByName) {
  const Json wrong[] = {Json(),      Json(true), Json(-1),         Json(1.5),
                        Json(1e300), Json("x"),  Json::array({1}), Json::object()};
  const char* const places[] = {"/format",
                                "/version",
                                "/layout",
                                "/tag",
                                "/files",
                                "/tensors",
                                "/info",
                                "/files/0",
                                "/files/0/name",
                                "/files/0/bytes",
                                "/files/0/block_bytes",
                                "/files/0/xxh3",
                                "/tensors/0",
                                "/tensors/0/name",
                                "/tensors/0/dtype",
                                "/tensors/0/shape",
                                "/tensors/0/slices",
                                "/tensors/0/shape/0",
                                "/tensors/0/slices/0",
                                "/tensors/0/slices/0/0",
                                "/tensors/0/slices/0/1",
                                "/tensors/0/slices/0/2",
                                "/tensors/0/slices/0/3"};
  for (const std::string place : places) {
    for (const Json& value : wrong) {
      Json json = good();
      Json& here = json[Json::json_pointer(place)];
      const bool any_text = value.is_string() && here.is_string() && place != "/files/0/xxh3";
      if (any_text || (value.type() == here.type() && !here.is_number() && !here.is_string())) continue;
      here = value;
      EXPECT_NE(said_about(json), "") << place << " is " << value.dump();
    }
    Json json = good();
    const size_t end = place.rfind('/');
    Json& above = json[Json::json_pointer(place.substr(0, end))];
    if (!above.is_object()) continue;
    above.erase(place.substr(end + 1));
    const std::string said = place == "/format" ? "is not of the format" : "has no \"" + place.substr(end + 1);
    EXPECT_NE(said_about(json).find(said), std::string::npos) << place;
  }
}

// Before, blocks had one size in all files, and checksums were a list.
TEST(ManifestTest, OlderManifestsAreRead) {
  Json json = good();
  for (Json& file : json["files"]) file.erase("block_bytes");
  json["version"] = 1;
  json["block_bytes"] = 1 << 20;
  json["files"][0]["bytes"] = (1 << 20) + 5;
  json["files"][0]["xxh3"] = {"0123456789abcdef", "fedcba9876543210"};
  const Manifest manifest = parse_manifest(signed_text(json), "m");
  EXPECT_EQ(manifest.files[0].checksums.block_bytes, 1 << 20);
  EXPECT_EQ(manifest.files[0].checksums.blocks, (std::vector<uint64_t>{0x0123456789abcdef, 0xfedcba9876543210}));
  EXPECT_EQ(manifest.files[1].checksums.count(), 0);
  json["files"][0]["xxh3"][1] = 7;
  EXPECT_NE(said_about(json).find("7 is no checksum"), std::string::npos);
}

TEST(ManifestTest, ChecksumsAreOnesOfTheFilesBlocks) {
  Json json = good();
  for (const int64_t size : {0, 1, 4095, 65537, 2 << 20}) {
    json["files"][0]["block_bytes"] = size;
    EXPECT_NE(said_about(json).find("expected a power of two"), std::string::npos) << size;
  }
  json = good();
  json["files"][0]["bytes"] = 65537;
  EXPECT_NE(said_about(json).find("65537 bytes have 1 checksums, expected 2"), std::string::npos);
  json["files"][0]["xxh3"] = "0123456789abcdef0123456789abcde";
  EXPECT_NE(said_about(json).find("0123456789abcde is no checksum"), std::string::npos);
}

TEST(ManifestTest, BlocksGrowWithTheFile) {
  EXPECT_EQ(block_bytes_for(0), 64 << 10);
  EXPECT_EQ(block_bytes_for(int64_t{1} << 30), 128 << 10);
  for (int64_t bytes = 1; bytes < int64_t{1} << 50; bytes *= 3) {
    const FileChecksums sums{.bytes = bytes, .block_bytes = block_bytes_for(bytes), .blocks = {}};
    EXPECT_TRUE(is_block_size(sums.block_bytes)) << bytes;
    EXPECT_TRUE(sums.count() <= int64_t{1} << 14 || sums.block_bytes == kChunkBytes) << bytes;
  }
}

TEST(ManifestTest, NamesThatLeaveTheFolderAreRefused) {
  for (const std::string name : {"../f", "/f", "a/b", "a\\b", "C:f", "..", ".", "", "manifest.json"}) {
    Json json = good();
    json["files"][0]["name"] = name;
    EXPECT_NE(said_about(json).find("not the name of a file"), std::string::npos) << name;
  }
  Json json = good();
  json["files"][0]["name"] = std::string("f\0/../x", 7);
  EXPECT_NE(said_about(json).find("not the name of a file"), std::string::npos);
}

TEST(ManifestTest, SizesThatOverflowAreRefused) {
  const std::vector<std::pair<std::string, uint64_t>> cases = {
      {"/tensors/0/shape/0", uint64_t{1} << 62},    {"/tensors/0/shape/1", uint64_t{1} << 63},
      {"/tensors/0/shape/0", ~uint64_t{0}},         {"/tensors/0/slices/0/0", uint64_t{1} << 32},
      {"/tensors/0/slices/0/1", uint64_t{1} << 62}, {"/tensors/0/slices/0/2", (uint64_t{1} << 62) - 1},
      {"/tensors/0/slices/0/3", uint64_t{1} << 62}, {"/tensors/0/slices/1/3", (uint64_t{1} << 62) - 1},
      {"/files/0/bytes", uint64_t{1} << 62},        {"/files/0/block_bytes", ~uint64_t{0}}};
  for (const auto& [place, value] : cases) {
    Json json = good();
    json[Json::json_pointer(place)] = value;
    EXPECT_NE(said_about(json), "") << place << " is " << value;
  }
}

TEST(ManifestTest, BytesOfAFileBelongToOneSlice) {
  Json json = good();
  json["tensors"][0]["slices"][1][1] = 24;
  EXPECT_NE(said_about(json).find("tensors a and a have the same bytes of file f"), std::string::npos);
  json = good();
  json["tensors"].push_back({{"name", "c"}, {"dtype", "int8"}, {"shape", {1}}, {"slices", {{0, 27, 0, 1}}}});
  EXPECT_NE(said_about(json).find("tensors a and c have the same bytes of file f"), std::string::npos);
}

TEST(ManifestTest, LongNamesDoNotFillTheMessage) {
  const std::string name(100'000, 'n');
  Json json = good();
  json["tensors"][0]["name"] = name;
  json["tensors"][0]["dtype"] = name;
  EXPECT_NE(said_about(json).find("is not known"), std::string::npos);
  json = good();
  json["files"][0]["name"] = name + "/";
  EXPECT_NE(said_about(json).find("not the name of a file"), std::string::npos);
  json = good();
  json["version"] = std::vector<int>(10'000, 1);
  EXPECT_NE(said_about(json).find("has version"), std::string::npos);
}

TEST(ManifestTest, TextThatIsNoManifestIsRefused) {
  for (const std::string text : {"", "{", "[]", "null", "{}", "\xff", "{\"format\": \"deepscale.checkpoint\"}"}) {
    EXPECT_THROW((void)parse_manifest(text, "m"), CheckpointError) << text;
  }
  EXPECT_THROW((void)parse_manifest(std::string(1'000'000, '['), "m"), CheckpointError);
}

TEST(ManifestTest, AHundredThousandTensorsTakeSeconds) {
  Json json = good();
  json["files"] =
      Json::array({{{"name", "f"}, {"bytes", 100'000}, {"block_bytes", 1 << 20}, {"xxh3", "0123456789abcdef"}}});
  json["tensors"] = Json::array();
  for (int i = 0; i < 100'000; ++i) {
    json["tensors"].push_back(
        {{"name", "t" + std::to_string(i)}, {"dtype", "int8"}, {"shape", {1}}, {"slices", {{0, 99'999 - i, 0, 1}}}});
  }
  const std::clock_t begin = std::clock();  // of this process: the machine may be busy
  EXPECT_EQ(said_about(json), "");
  EXPECT_LT(static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC, 30.0);
}

}  // namespace
}  // namespace deepscale
