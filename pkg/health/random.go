package health

// Bounds of the chi-square statistic of a byte histogram, 255 degrees of freedom: seven standard
// deviations either side by the approximation of Wilson and Hilferty (1931). Truly random bytes
// fall outside once in about 4·10¹¹ tests, which at one test a minute is once in 700 000 years. A
// block of zeros gives 255 times its length, text and headers some multiples of the bound; bytes
// that are too even, a counter for one, fall below.
const (
	chiSquareLow  = 127.0
	chiSquareHigh = 447.0
)

// minRandomBytes is the least sample that is judged: 16 bytes expected of each value, for which
// the statistic follows its distribution well.
const minRandomBytes = 4096

// chiSquare measures how far the frequencies of byte values are from all being equal.
func chiSquare(sample []byte) float64 {
	var counts [256]int
	for _, b := range sample {
		counts[b]++
	}
	expected := float64(len(sample)) / float64(len(counts))
	sum := 0.0
	for _, n := range counts {
		d := float64(n) - expected
		sum += d * d / expected
	}
	return sum
}

func looksRandom(chi float64) bool { return chiSquareLow < chi && chi < chiSquareHigh }
