# SPDX-License-Identifier: MIT
# Time of decode attention by length: reads by_length.dat in output_dir, writes decode_attention.svg beside it.
#   gnuplot -e "output_dir='build/bench'" bench/decode_attention.gp
if (!exists("output_dir")) output_dir = "build/bench"
data = output_dir . "/by_length.dat"

set terminal svg size 760,480 font "sans-serif,13" background "white"
set output output_dir . "/decode_attention.svg"
set title "Decode attention, d = 128, 4 query heads, one thread, caches cold"
set xlabel "tokens"
set ylabel "ns per token and KV head"
set logscale xy
set grid
set key outside right
plot data using 1:4 with linespoints pointtype 7 linecolor "gray40" title "exact f16", \
     data using 1:5 with linespoints pointtype 5 linecolor "#c07820" title "int8", \
     data using 1:6 with linespoints pointtype 9 linecolor "#a04080" title "int4", \
     data using 1:3 with linespoints pointtype 11 linecolor "#2f8f4f" title "2 bits, before RoPE", \
     data using 1:2 with linespoints pointtype 13 linecolor "#1f5fa8" title "2 bits"
