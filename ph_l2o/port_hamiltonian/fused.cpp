// The passes of ph_l2o/port_hamiltonian/kernels.py; see there for what the numbers and sums are.
#include <cmath>
#include <cstdint>

namespace {

// Sums are of the coordinates' type within a block of this length, and of type double beyond it.
constexpr int64_t kBlock = 2048;

struct Part {
  enum { kGrad, kTheta, kHome, kFast, kSlow, kSecond, kMomentum, kPointers };
};

template <typename T>
inline T scale_of(T second, T floor) {
  return std::sqrt(T(1) / std::sqrt(second + floor));
}

// The largest absolute value, or NaN if anything is not finite.
template <typename T>
void largest(int64_t size, void* const* p, double, const double*, double* out) {
  const T* __restrict grad = static_cast<const T*>(p[Part::kGrad]);
  T most = 0, none = 0;
#pragma omp simd reduction(max : most) reduction(+ : none)
  for (int64_t i = 0; i < size; ++i) {
    const T g = std::abs(grad[i]);
    most = g > most ? g : most;
    none += g * T(0);
  }
  *out = double(most + none);
}

template <typename T>
void absorb(int64_t size, void* const* p, double unit, const double* number, double* out) {
  const T* __restrict grad = static_cast<const T*>(p[Part::kGrad]);
  const T* __restrict home = static_cast<const T*>(p[Part::kHome]);
  T* __restrict fast = static_cast<T*>(p[Part::kFast]);
  T* __restrict slow = static_cast<T*>(p[Part::kSlow]);
  T* __restrict second = static_cast<T*>(p[Part::kSecond]);
  const T* __restrict momentum = static_cast<const T*>(p[Part::kMomentum]);
  const T factor = T(unit), of_fast = T(number[0]), of_slow = T(number[1]), of_second = T(number[2]);
  const T rest = T(1 - number[2]);
  for (int64_t first = 0; first < size; first += kBlock) {
    const int64_t end = first + kBlock < size ? first + kBlock : size;
    T gg = 0, ff = 0, ss = 0, tt = 0, gf = 0, gs = 0, gp = 0;
#pragma omp simd reduction(+ : gg, ff, ss, tt, gf, gs, gp)
    for (int64_t i = first; i < end; ++i) {
      const T g = factor * grad[i], pi = momentum[i], th = home[i];
      const T f = fast[i] + of_fast * (g - fast[i]);
      const T s = slow[i] + of_slow * (g - slow[i]);
      fast[i] = f;
      slow[i] = s;
      second[i] = rest * second[i] + of_second * g * g;
      gg += g * g;
      ff += f * f;
      ss += s * s;
      tt += th * th;
      gf += g * f;
      gs += g * s;
      gp += g * pi;
    }
    const T sums[] = {gg, ff, ss, tt, gf, gs, gp};
    for (int k = 0; k < 7; ++k) out[k] += sums[k];
  }
}

template <typename T, bool kPulls>
void predict_with(int64_t size, void* const* p, double unit, const double* number, double* out) {
  const T* __restrict grad = static_cast<const T*>(p[Part::kGrad]);
  const T* __restrict theta = static_cast<const T*>(p[Part::kTheta]);
  const T* __restrict fast = static_cast<const T*>(p[Part::kFast]);
  const T* __restrict second = static_cast<const T*>(p[Part::kSecond]);
  const T* __restrict momentum = static_cast<const T*>(p[Part::kMomentum]);
  const T factor = T(unit), floor = T(number[0]), mix = T(number[1]);
  for (int64_t first = 0; first < size; first += kBlock) {
    const int64_t end = first + kBlock < size ? first + kBlock : size;
    T hh = 0, hp = 0, ht = 0;
#pragma omp simd reduction(+ : hh, hp, ht)
    for (int64_t i = first; i < end; ++i) {
      const T q = scale_of(second[i], floor);
      const T g = factor * grad[i];
      const T h = q * (g + mix * (fast[i] - g));
      hh += h * h;
      hp += h * momentum[i];
      if constexpr (kPulls) ht += h * (q * theta[i]);
    }
    out[0] += hh;
    out[1] += hp;
    out[2] += ht;
  }
}

template <typename T>
void predict(int64_t size, void* const* p, double unit, const double* number, double* out) {
  predict_with<T, false>(size, p, unit, number, out);
}

template <typename T>
void predict_pulled(int64_t size, void* const* p, double unit, const double* number, double* out) {
  predict_with<T, true>(size, p, unit, number, out);
}

// Theta need not be finite where there is no spring; where it is turned there it begins at 0.
template <typename T, bool kPulls, bool kFromTheta>
void move_with(int64_t size, void* const* p, double unit, const double* number, double* out) {
  const T* __restrict grad = static_cast<const T*>(p[Part::kGrad]);
  T* __restrict theta = static_cast<T*>(p[Part::kTheta]);
  const T* __restrict fast = static_cast<const T*>(p[Part::kFast]);
  const T* __restrict second = static_cast<const T*>(p[Part::kSecond]);
  T* __restrict momentum = static_cast<T*>(p[Part::kMomentum]);
  const T factor = T(unit), floor = T(number[0]), mix = T(number[1]);
  const T keep = T(number[2]), force = T(number[3]), spring = T(number[4]), rate = T(number[5]);
  for (int64_t first = 0; first < size; first += kBlock) {
    const int64_t end = first + kBlock < size ? first + kBlock : size;
    T pp = 0, tt = 0;
#pragma omp simd reduction(+ : pp, tt)
    for (int64_t i = first; i < end; ++i) {
      const T q = scale_of(second[i], floor);
      const T g = factor * grad[i];
      const T push = g + mix * (fast[i] - g);
      T pi = keep * momentum[i] - (force * q) * push;
      if constexpr (kPulls) pi -= (spring * q) * theta[i];
      T th = (rate * q) * pi;
      if constexpr (kFromTheta) th += theta[i];
      momentum[i] = pi;
      theta[i] = th;
      pp += pi * pi;
      tt += th * th;
    }
    out[0] += pp;
    out[1] += tt;
  }
}

template <typename T>
void move(int64_t size, void* const* p, double unit, const double* number, double* out) {
  const bool is_turned = p[Part::kTheta] != p[Part::kHome];
  (is_turned ? move_with<T, false, false> : move_with<T, false, true>)(size, p, unit, number, out);
}

template <typename T>
void move_pulled(int64_t size, void* const* p, double unit, const double* number, double* out) {
  (number[4] != 0 ? move_with<T, true, true> : move_with<T, false, true>)(size, p, unit, number, out);
}

template <typename T>
using Pass = void (*)(int64_t, void* const*, double, const double*, double*);

template <typename T>
void over_parts(Pass<T> pass, bool backwards, int64_t count, const int64_t* places, const int64_t* owners,
                void* const* pointers, const int64_t* sizes, double unit, const double* numbers, int64_t columns,
                double* out, int64_t sums) {
  // Each pass begins with what the last one ended with, which is still in the cache.
  for (int64_t n = 0; n < count; ++n) {
    const int64_t k = backwards ? count - 1 - n : n;
    pass(sizes[k], pointers + k * Part::kPointers, unit, numbers + owners[k] * columns, out + places[k] * sums);
  }
}

}  // namespace

#define PASS(name, suffix, type, columns, sums, backwards)                                                    \
  extern "C" void name##_##suffix(int64_t count, const int64_t* places, const int64_t* owners,                \
                                  void* const* pointers, const int64_t* sizes, double unit,                   \
                                  const double* numbers, double* out) {                                       \
    over_parts<type>(name<type>, backwards, count, places, owners, pointers, sizes, unit, numbers, columns,   \
                     out, sums);                                                                              \
  }

PASS(largest, f32, float, 1, 1, false)
PASS(largest, f64, double, 1, 1, false)
PASS(absorb, f32, float, 3, 7, false)
PASS(absorb, f64, double, 3, 7, false)
PASS(predict, f32, float, 2, 3, true)
PASS(predict, f64, double, 2, 3, true)
PASS(predict_pulled, f32, float, 2, 3, true)
PASS(predict_pulled, f64, double, 2, 3, true)
PASS(move, f32, float, 6, 2, false)
PASS(move, f64, double, 6, 2, false)
PASS(move_pulled, f32, float, 6, 2, false)
PASS(move_pulled, f64, double, 6, 2, false)
