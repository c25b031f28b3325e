// A document with every kind of value in it, for the tests of the formats.
#pragma once

#include <memory>
#include <vector>

#include "checkpoint/py_value.h"

namespace deepscale::test {

template <typename T>
std::shared_ptr<const void> elements(std::vector<T> values) {
  auto kept = std::make_shared<std::vector<T>>(std::move(values));
  return {kept, kept->data()};
}

inline PyDocument sample_document() {
  PyDocument document;
  PyNode* root = document.ordered_dict();
  document.root = root;
  root->set("none", PyValue());
  root->set("flags", document.tuple({true, false}));
  root->set("numbers", document.tuple({0, -1, 70000, int64_t{1} << 40, int64_t{-1} << 62, 2.5, -1e300}));
  root->set("text", "\xc3\xa4 text");
  PyNode* inner = document.dict();
  inner->set(3, "three");
  root->set("inner", inner);
  root->set("shape", document.size({2, 3}));
  PyNode* object = document.make(PyKind::kObject, "some.module.Class");
  PyNode* attributes = document.dict();
  attributes->set("cur_scale", 64.0);
  object->state = attributes;
  root->set("object", object);
  PyNode* tensor = document.tensor(DType::kFloat32, {2, 3}, elements<float>({0, 1, 2, 3, 4, 5}));
  root->set("tensor", tensor);
  root->set("again", tensor);
  root->set("half", document.tensor(DType::kBFloat16, {2}, elements<uint16_t>({0x3FC0, 0x3FC0})));
  root->set("scalar", document.tensor(DType::kInt64, {}, elements<int64_t>({7})));
  root->set("nothing", document.tensor(DType::kFloat16, {0}, nullptr));
  return document;
}

}  // namespace deepscale::test
