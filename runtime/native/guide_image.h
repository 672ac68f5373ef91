// Guide images bit for bit as OpenCV draws them (runtime/keypoints.py, draw_keypoints): two limbs and three discs.
//
// Each thread draws one row of one image: it follows all outlines, which are short, and keeps what lies on its row. Its
// polygon lies in memory of the caller: on a GPU not on the stack, which CUDA keeps for as many threads as the GPU can
// hold (0.8 GB on an H100).
#pragma once

#include "small_floats.h"

namespace vexpress {
namespace guide {

constexpr Int32 kPoints = 361;       // of an ellipse's polygon, one per degree and the first again
constexpr Int32 kHalfWidth = 4;      // of a limb
constexpr double kFarthest = 16000;  // pixels; a point beyond it is left out
constexpr Int32 kOne = 1 << 16;      // a pixel in OpenCV's fixed point

struct Point {
    Int32 x, y;
};

// A polygon as distances from its centre: of points within kFarthest half an ellipse's length is below 22628 pixels.
struct Polygon {
    struct Offset {
        Int16 x, y;
    };
    Point centre;
    Int32 count;
    Offset offsets[kPoints];

    VEXPRESS_INLINE Point operator[](Int32 i) const {
        return {centre.x + offsets[i].x, centre.y + offsets[i].y};
    }
    VEXPRESS_INLINE void add(Point point) {
        offsets[count++] = {static_cast<Int16>(point.x - centre.x), static_cast<Int16>(point.y - centre.y)};
    }
};
constexpr Int32 kThreads = 32;  // of a block on a GPU: their polygons fit its static shared memory

enum Kind : Int32 { kFloat32, kFloat16, kBFloat16, kByte };

// One row of an image: bytes [width, 3], or planes of a floating-point image in 0 to 1.
struct Row {
    void *image;
    Kind kind;
    Index offset, channel, pixel;  // of the row's first value, and values from one channel or pixel to the next
    Int32 y, width, height;

    VEXPRESS_INLINE void fill(Index begin, Index end, const Byte (&colour)[3]) const {
        if (begin < 0) begin = 0;
        if (end > width - 1) end = width - 1;
        for (int c = 0; c < 3; ++c) {
            const float shade = static_cast<float>(colour[c]) / 255.0f;
            for (Index x = begin; x <= end; ++x) {
                const Index at = offset + c * channel + x * pixel;
                if (kind == kByte) static_cast<Byte *>(image)[at] = colour[c];
                if (kind == kFloat32) static_cast<float *>(image)[at] = shade;
                if (kind == kFloat16) static_cast<Float16 *>(image)[at] = narrowed<Float16>(shade);
                if (kind == kBFloat16) static_cast<BFloat16 *>(image)[at] = narrowed<BFloat16>(shade);
            }
        }
    }
};

// OpenCV's sine of whole degrees: rounded to seven decimals, as float.
VEXPRESS_CALL float sine(Int32 degrees) {
    return static_cast<float>(rint(sin(degrees * (3.141592653589793 / 180.0)) * 1e7) / 1e7);
}

VEXPRESS_INLINE float cosine(Int32 degrees) {
    return sine(degrees <= 90 ? 90 - degrees : 450 - degrees);
}

// The direction of (x, y) in whole degrees, truncated, 0 to 359. Diagonals, where truncation could show the last digit
// of a processor's arc tangent, are taken for what they are.
VEXPRESS_INLINE Int32 direction(double x, double y) {
    double degrees = atan2(y, x) * (180.0 / 3.141592653589793);
    if (fabs(x) == fabs(y) && x != 0.0) degrees = (x > 0.0 ? 45.0 : 135.0) * (y > 0.0 ? 1.0 : -1.0);
    const Int32 whole = static_cast<Int32>(degrees);
    return whole < 0 ? whole + 360 : whole;
}

// The polygon of a limb's ellipse: neighbours that round to the same pixel are one point.
VEXPRESS_CALL void ellipse(Point centre, Int32 half_length, Int32 angle, Polygon &points) {
    const double across = cosine(angle), along = sine(angle);
    points.centre = centre;
    points.count = 0;
    Point last{0, 0};
    for (Int32 degrees = 0; degrees < kPoints; ++degrees) {
        const double x = half_length * static_cast<double>(cosine(degrees));
        const double y = kHalfWidth * static_cast<double>(sine(degrees));
        const Point point{static_cast<Int32>(rint(centre.x + x * across - y * along)),
                          static_cast<Int32>(rint(centre.y + x * along + y * across))};
        if (points.count == 0 || point.x != last.x || point.y != last.y) points.add(point);
        last = point;
    }
    if (points.count == 1) points.add(centre);
}

// Moves `end` of a line along it to the row or column `limit`; `major` is the coordinate that is set.
VEXPRESS_INLINE void cut(Index limit, Index &major, Index &minor, Index other_major, Index other_minor) {
    const Index rise = other_minor - minor, run = other_major - major;
    minor += static_cast<Index>(static_cast<double>(limit - major) * rise / run);
    major = limit;
}

struct Line {
    Index x1, y1, x2, y2;
};

VEXPRESS_INLINE int beyond(Index at, Index last) {
    return at < 0 ? -1 : at > last ? 1 : 0;
}

// Cuts a line to the canvas as OpenCV does: rows first, then columns, offsets truncated. Returns whether any is left.
VEXPRESS_CALL bool clipped(Line &line, Index right, Index bottom) {
    int x1 = beyond(line.x1, right), x2 = beyond(line.x2, right);
    int y1 = beyond(line.y1, bottom), y2 = beyond(line.y2, bottom);
    if ((x1 != 0 && x1 == x2) || (y1 != 0 && y1 == y2)) return false;
    if (y1) {
        cut(y1 < 0 ? 0 : bottom, line.y1, line.x1, line.y2, line.x2);
        x1 = beyond(line.x1, right);
    }
    if (y2) {
        cut(y2 < 0 ? 0 : bottom, line.y2, line.x2, line.y1, line.x1);
        x2 = beyond(line.x2, right);
    }
    if (x1 != 0 && x1 == x2) return false;
    if (x1) cut(x1 < 0 ? 0 : right, line.x1, line.y1, line.x2, line.y2);
    if (x2) cut(x2 < 0 ? 0 : right, line.x2, line.y2, line.x1, line.y1);
    return true;
}

// Bresenham's line between two pixels, from left to right.
VEXPRESS_CALL void draw_line(const Row &row, Point from, Point to, const Byte (&colour)[3]) {
    if ((row.y < from.y && row.y < to.y) || (row.y > from.y && row.y > to.y)) return;
    Line line{from.x, from.y, to.x, to.y};
    if (!clipped(line, row.width - 1, row.height - 1)) return;
    if (line.x2 < line.x1) line = {line.x2, line.y2, line.x1, line.y1};
    const Index dx = line.x2 - line.x1, dy = line.y2 < line.y1 ? line.y1 - line.y2 : line.y2 - line.y1;
    const Index down = line.y2 < line.y1 ? -1 : 1;
    const bool steep = dy > dx;
    const Index steps = steep ? dy : dx, aside = steep ? dx : dy;
    Index x = line.x1, y = line.y1, error = steps - 2 * aside;
    for (Index i = 0; i <= steps; ++i) {
        if (y == row.y) row.fill(x, x, colour);
        const bool both = error < 0;
        error += (both ? 2 * steps : 0) - 2 * aside;
        x += !steep || both ? 1 : 0;
        y += steep || both ? down : 0;
    }
}

// One side of a convex polygon on its way down from the topmost point.
struct Side {
    Int32 at, step;    // the point it comes from, and how many points on the next one lies (modulo their number)
    Int32 until;       // the row where the current edge ends
    Index x, per_row;  // in fixed point
};

// A filled convex polygon: its outline, and between the two sides of each row, rounded to the nearest pixel.
VEXPRESS_CALL void fill_convex(const Row &row, const Polygon &points, const Byte (&colour)[3]) {
    const Int32 count = points.count;
    Int32 top = 0, bottom = points[0].y, left = points[0].x, right = points[0].x;
    for (Int32 i = 0; i < count; ++i) {
        const Point point = points[i];
        if (point.y < points[top].y) top = i;
        if (point.y > bottom) bottom = point.y;
        if (point.x < left) left = point.x;
        if (point.x > right) right = point.x;
        draw_line(row, points[i == 0 ? count - 1 : i - 1], point, colour);
    }
    if (count < 3 || right < 0 || left >= row.width || row.y < points[top].y || row.y > bottom) return;
    Side sides[2] = {{top, 1, points[top].y, -kOne, 0}, {top, count - 1, points[top].y, -kOne, 0}};
    Int32 edges = count;
    for (Int32 y = points[top].y; y <= row.y; ++y) {
        for (Side &side : sides) {
            if (y < side.until) continue;
            Int32 from = side.at, to = (from + side.step) % count;
            while (edges-- > 0) {
                if (points[to].y > y) {
                    const Index rows = points[to].y - y;
                    side.x = static_cast<Index>(points[from].x) * kOne;
                    side.per_row = (2 * (static_cast<Index>(points[to].x) * kOne - side.x) + rows) / (2 * rows);
                    side.until = points[to].y;
                    side.at = to;
                    break;
                }
                from = to;
                to = (to + side.step) % count;
            }
        }
        if (edges < 0) return;
        if (y == row.y) {
            const Index a = sides[0].x, b = sides[1].x;
            row.fill(((a < b ? a : b) + kOne / 2) >> 16, ((a < b ? b : a) + kOne / 2) >> 16, colour);
        }
        for (Side &side : sides) side.x += side.per_row;
    }
}

// The half widths of OpenCV's filled circle of radius 4, by distance from its middle row.
VEXPRESS_INLINE Int32 disc_half_width(Int32 distance) {
    return distance == 0 ? 4 : distance <= 2 ? 3 : distance == 3 ? 2 : distance == 4 ? 0 : -1;
}

template <typename Number>
VEXPRESS_INLINE void draw_row(const Row &row, const Number *points, Polygon &polygon) {
    const Byte none[3] = {0, 0, 0};
    row.fill(0, row.width - 1, none);
    bool drawable[3];
    for (int i = 0; i < 3; ++i)
        drawable[i] = fabs(static_cast<double>(points[2 * i])) <= kFarthest &&
                      fabs(static_cast<double>(points[2 * i + 1])) <= kFarthest;
    for (int eye = 0; eye < 2; ++eye) {
        if (!drawable[eye] || !drawable[2]) continue;
        const Number *const at = points + 2 * eye, *const nose = points + 4;
        const Number x = at[0] - nose[0], y = at[1] - nose[1], two = 2;
        const Point centre{static_cast<Int32>((at[0] + nose[0]) / two), static_cast<Int32>((at[1] + nose[1]) / two)};
        const Int32 half_length = static_cast<Int32>(static_cast<Number>(sqrt(x * x + y * y)) / two);
        const Byte colour[3] = {static_cast<Byte>(eye == 0 ? 153 : 0), static_cast<Byte>(eye == 1 ? 153 : 0), 0};
        ellipse(centre, half_length, direction(x, y), polygon);
        fill_convex(row, polygon, colour);
    }
    for (int i = 0; i < 3; ++i) {
        if (!drawable[i]) continue;
        const Int32 x = static_cast<Int32>(points[2 * i]), y = static_cast<Int32>(points[2 * i + 1]);
        const Byte colour[3] = {static_cast<Byte>(i == 0 ? 255 : 0), static_cast<Byte>(i == 1 ? 255 : 0),
                                static_cast<Byte>(i == 2 ? 255 : 0)};
        const Int32 half = disc_half_width(row.y < y ? y - row.y : row.y - y);
        if (half >= 0) row.fill(x - half, x + half, colour);
    }
}

}  // namespace guide

// `count` guide images of points [count, 3, 2] (left eye, right eye, nose; x, y), float64 if `wide`, else float32:
// bytes [count, height, width, 3], or [count, 3, height, width] from 0 to 1 in another kind of `out`. `polygon` is this
// thread's own.
VEXPRESS_INLINE void draw_keypoints(const Share &share, const void *points, Int32 wide, void *out, Int32 kind,
                                    Index count, Index height, Index width, guide::Polygon &polygon) {
    const bool bytes = kind == guide::kByte;
    guide::Row row{out, static_cast<guide::Kind>(kind), 0, bytes ? 1 : height * width, bytes ? 3 : 1, 0,
                   static_cast<Int32>(width), static_cast<Int32>(height)};
    for (Index image = share.row; image < count; image += share.row_step)
        for (Index y = share.column; y < height; y += share.column_step) {
            row.offset = 3 * image * height * width + y * width * row.pixel;
            row.y = static_cast<Int32>(y);
            if (wide)
                guide::draw_row(row, static_cast<const double *>(points) + 6 * image, polygon);
            else
                guide::draw_row(row, static_cast<const float *>(points) + 6 * image, polygon);
        }
}

}  // namespace vexpress
