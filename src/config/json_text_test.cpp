#include "config/json_text.h"

#include <limits>

#include "config/test_support.h"

namespace deepscale::config {
namespace {

std::string failure(std::string_view text) {
  try {
    parse_json_text(text);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

TEST(JsonText, CommentsAndTrailingCommasAreAccepted) {
  const Json value = parse_json_text(R"(# head
    { // line
      "a": [1, 2, /* inner */ ], "url": "http://x#y", /* block
      over lines */ "b": {"c": 1,}, # more
    }  // end)");
  EXPECT_EQ(value["a"], Json::array({1, 2}));
  EXPECT_EQ(value["url"], "http://x#y");
  EXPECT_EQ(value["b"]["c"], 1);
}

TEST(JsonText, QuotesAndBackslashesInStringsHideNothing) {
  const Json value = parse_json_text(R"({"a": "say \"x\" // no comment", "b": "end\\", "c": ",}"})");
  EXPECT_EQ(value["a"], "say \"x\" // no comment");
  EXPECT_EQ(value["b"], "end\\");
  EXPECT_EQ(value["c"], ",}");
}

TEST(JsonText, ByteOrderMarkIsSkipped) {
  EXPECT_EQ(parse_json_text("\xef\xbb\xbf{\"a\": 1}")["a"], 1);
}

TEST(JsonText, DuplicateKeysAreNamedWithTheirPaths) {
  const std::string error = failure(R"({"a": 1, "z": {"stage": 1, "stage": 2}, "a": 2})");
  EXPECT_CONTAINS(error, "duplicate keys");
  EXPECT_CONTAINS(error, "z.stage");
  EXPECT_CONTAINS(error, ", a;");
}

TEST(JsonText, EqualKeysInDifferentObjectsAreNoDuplicates) {
  EXPECT_EQ(failure(R"({"a": {"enabled": true}, "b": {"enabled": true}, "c": [{"x": 1}, {"x": 1}]})"), "");
}

TEST(JsonText, InfinityIsReadAndWritten) {
  const Json value = parse_json_text(R"({"a": Infinity, "b": [-Infinity], "c": "Infinity"})");
  EXPECT_EQ(value["a"], std::numeric_limits<double>::infinity());
  EXPECT_EQ(value["b"][0], -std::numeric_limits<double>::infinity());
  EXPECT_EQ(value["c"], "Infinity");
  EXPECT_EQ(json_to_text(value), R"({"a":Infinity,"b":[-Infinity],"c":"Infinity"})");
}

TEST(JsonText, NanIsRefusedWithItsPlace) {
  EXPECT_CONTAINS(failure("{\"a\":\n  NaN}"), "line 2, column 3: NaN");
}

TEST(JsonText, PythonLiteralsAreExplained) {
  EXPECT_CONTAINS(failure(R"({"a": None})"), "null");
  EXPECT_CONTAINS(failure(R"({"a": True})"), "true");
  EXPECT_CONTAINS(failure(R"({"a": False})"), "false");
}

TEST(JsonText, SyntaxErrorsNameTheLine) {
  EXPECT_CONTAINS(failure("{\n\"a\" 1}"), "line 2");
  EXPECT_CONTAINS(failure("{\"a\": 1"), "not JSON");
  EXPECT_CONTAINS(failure(""), "not JSON");
  EXPECT_CONTAINS(failure("{\"a\": 'x'}"), "not JSON");
  EXPECT_CONTAINS(failure("{} {}"), "not JSON");
  EXPECT_CONTAINS(failure("{\"a\": /* open"), "close the comment");
  EXPECT_CONTAINS(failure("[1,,]"), "not JSON");
  EXPECT_CONTAINS(failure("{\"a\": 1e999}"), "not JSON");
  EXPECT_CONTAINS(failure("{\"a\": \"\xff\"}"), "not JSON");
}

TEST(JsonText, DeepNestingIsRefusedInsteadOfOverflowingTheStack) {
  EXPECT_CONTAINS(failure(std::string(100000, '[')), "deeper than 64");
}

TEST(JsonText, AZeroByteDoesNotEndTheText) {
  EXPECT_CONTAINS(failure(std::string("{\"a\": 1}\0 and more", 18)), "line 1, column 9");
}

TEST(JsonText, MessagesStaySmallWhateverTheTextHolds) {
  EXPECT_LT(failure("{\"a\": \"" + std::string(1 << 20, 'x')).size(), 500u);
  std::string twice = "{\"" + std::string(1 << 20, 'k') + "\": {\"a\": 1";
  for (int i = 0; i < 100'000; ++i) twice += ",\"a\":1";  // their paths together: 100 GB
  const std::string message = failure(twice + "}}");
  EXPECT_CONTAINS(message, "duplicate keys");
  EXPECT_LT(message.size(), 10'000u);
}

TEST(JsonText, Base64UrlIsDecoded) {
  EXPECT_EQ(decode_base64url("eyJhIjogMX0="), R"({"a": 1})");
  EXPECT_EQ(decode_base64url("eyJhIjogMX0"), R"({"a": 1})");
  EXPECT_EQ(decode_base64url("-_-_"), "\xfb\xff\xbf");
  EXPECT_FALSE(decode_base64url("no spaces allowed").has_value());
  EXPECT_FALSE(decode_base64url("a").has_value());
  EXPECT_FALSE(decode_base64url("").has_value());
}

}  // namespace
}  // namespace deepscale::config
