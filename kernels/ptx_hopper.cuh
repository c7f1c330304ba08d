// The part of ptx.cuh that only sm_90a has.
#pragma once
