// Everything of the public C++ API.
#pragma once

#include "deepscale/communicator.h"
#include "deepscale/config.h"
#include "deepscale/error.h"
#include "deepscale/inference.h"
#include "deepscale/training.h"
#include "deepscale/unit.h"
