//! Tables, rate-distortion figures and the HTML page, from artifacts only
