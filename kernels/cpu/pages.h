// Large tensors in large pages.
#pragma once
#include <cstdint>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace scanweave {

// Asks for large pages under memory that is about to be written. glibc's malloc takes a tensor of 32 MiB or more from
// the kernel each time anew, and to get it page by page takes longer than to compute what goes into it.
template <class T> inline void prefer_large_pages(T* data, int64_t count) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kPage = 1 << 21;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) / kPage * kPage;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + count * sizeof(T)) / kPage * kPage;
  // Advice that is not taken changes nothing.
  if (data && count * sizeof(T) >= 16 * kPage && begin < end)
    static_cast<void>(madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE));
#else
  static_cast<void>(data), static_cast<void>(count);
#endif
}

}  // namespace scanweave
